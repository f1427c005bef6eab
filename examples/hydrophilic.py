"""A reward of one's own: how much water likes a protein. Used by studies/antibody.py, and written as TRL's are."""

from unmask.rewards import cached

# Hydropathy of amino acids (Kyte and Doolittle 1982): positive shuns water.
HYDROPATHY = dict(
    zip(
        "ARNDCQEGHILKMFPSTWYV",
        (
            1.8,
            -4.5,
            -3.5,
            -3.5,
            2.5,
            -3.5,
            -3.5,
            -0.4,
            -3.2,
            4.5,
            3.8,
            -3.9,
            1.9,
            2.8,
            -1.6,
            -0.8,
            -0.7,
            -0.9,
            -1.3,
            4.2,
        ),
        strict=True,
    )
)


@cached
def hydrophilic(completions, **columns):
    """Minus the mean hydropathy of a completion's residues; -4.5, the worst, where something else stands."""
    return [score(text.replace(" ", "")) for text in completions]


def score(residues):
    if not residues or not set(residues) <= set(HYDROPATHY):
        return -4.5
    return -sum(HYDROPATHY[residue] for residue in residues) / len(residues)
