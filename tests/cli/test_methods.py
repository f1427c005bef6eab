"""`unmask methods`: the table says what the methods do, and docs/methods.md is what the code makes of itself."""

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch

from unmask.cli.main import main
from unmask.denoisers.tiny import tiny_denoiser
from unmask.methods import MDPO, METHODS, VRPO, WD1, DiffuGRPO, DiSPO, UniGRPO
from unmask.methods.describe import EOS, GROUP, LEGEND, MASK, dry_rewards, dry_rollout, method_rows, words
from unmask.methods.dispo import BASES
from unmask.objective import advantages, likelihood, losses
from unmask.objective.objective import Objective, frozen_copy
from unmask.report.methods_page import all_rows, document
from unmask.settings.reader import leaves
from unmask.training.update import Updater
from unmask.uniforms import Uniforms

ROOT = Path(__file__).parents[2]
every_method = pytest.mark.parametrize("method", [method() for method in METHODS.values()], ids=METHODS)

# A completion of 32 tokens, in 16 steps and groups of 4: with gradient; without, in one update and in later ones.
FORWARDS = {
    "diffu-grpo": (1, 1, 2),  # one row; the reference, later the old policy too
    "wd1": (1, 0, 0),
    "unigrpo": (1, 1, 2),
    "coupled-grpo": (3, 3, 6),  # all masked, a subset, its complement
    "spg": (2, 0, 0),
    "gdpo": (3, 0, 3),  # three nodes
    "espo": (4, 4, 8),  # two pairs
    "rspo": (2, 2, 2),  # the reference; the advantage reads now where a batch is in one part
    "lfpo": (4, 0, 4),  # four rows; the old policy beside
    "just-grpo": (32, 0, 32),  # a row a token
    "vrpo": (2, 2, 2),  # four rows of two completions of four
    "mdpo": (8, 8, 8),  # eight steps; the sampler has recorded the old log-probs
    "dispo, base diffu-grpo": (1, 1, 2),
    "dispo + branch": (1, 1, 2),  # both fills in one forward
    "tracerl": (2, 0, 2),  # sixteen steps by eights
    "d2": (8, 8, 16),
}


def printed(capsys, *arguments) -> str:
    """What `unmask methods` prints."""
    assert main(["methods", *arguments]) == 0
    return capsys.readouterr().out


# ---- the rows ----


def test_all_rows_have_text_in_every_cell():
    rows = all_rows()
    assert [row.method for row in rows] == list(FORWARDS)
    cells = [cell for row in rows for cell in row.cells.values()]
    assert all(cells)
    assert not [cell for cell in cells if "<" in cell or "_" in cell]


def test_all_rows_forwards_by_hand():
    assert {row.method: (row.with_gradient, *row.without_gradient) for row in all_rows()} == FORWARDS


def test_method_rows_follow_the_settings():
    (shared,) = method_rows(DiffuGRPO(shared_prompt_mask=True, beta=0.0))
    assert (shared.with_gradient, shared.without_gradient) == (1 / GROUP, (0, 1 / GROUP))
    assert shared.surrogate == "clipped surrogate 0.5"
    assert shared.rows.endswith("(prompt mask prob 0.15, shared)")
    assert method_rows(WD1(positive_only=True))[0].advantage == "softmax positive"
    (old,) = method_rows(UniGRPO(num_masks=3, divergence_to="old"))
    assert (old.with_gradient, old.surrogate, old.frozen) == (
        3,
        "clipped surrogate 0.2 + 0.01 k3 to old",
        "old log-probs",
    )
    assert method_rows(VRPO(num_masks=6))[0].with_gradient == 3
    plain = method_rows(MDPO(steps=2, advantage="step_reward", confidence_weight=False))[0]
    assert (plain.with_gradient, plain.advantage) == (2, "z score of step reward")
    assert "confidence weight" not in plain.rows
    branch = method_rows(DiSPO(alpha=0.1, base=WD1()))[1]
    assert branch.surrogate == "0.1 × (clipped surrogate 0.5 + 0.04 k3 to reference)"


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
def test_method_rows_of_dispo_are_its_base_and_its_branches(base):
    *ours, branch = method_rows(DiSPO(base=base()))
    theirs = method_rows(base())
    assert [(row.rows, row.surrogate, row.forwards) for row in ours] == [
        (row.rows, row.surrogate, row.forwards) for row in theirs
    ]
    assert ours[0].method == f"dispo, base {base.name}"
    assert (branch.method, branch.unit) == ("dispo + branch", "branch")


def test_words_by_hand():
    assert words(advantages.leave_one_out) == "leave one out"
    assert words(advantages.ZScoreOf(score=advantages.future_mean)) == "z score of future mean"
    assert (
        words(advantages.PopulationZScore(lowest=0.25, highest=0.5)) == "population z score (lowest 0.25, highest 0.5)"
    )
    assert words(losses.ClippedSurrogate(epsilon=0.2)) == "clipped surrogate 0.2"
    assert words(losses.PolicyGradient()) == "policy gradient"
    assert words(likelihood.FromFunction(advantages.centered)) == "from function centered"
    assert words(likelihood.FromFunction(partial(advantages.centered))) == "from function partial"


def forwards_of_training(method, updates) -> tuple[float, float]:
    """Forwards a completion that a policy really makes in so many updates: with gradient, without."""
    count = {True: 0, False: 0}

    def hook(module, arguments, keywords):
        count[torch.is_grad_enabled()] += len(keywords["input_ids"])

    sizes = {"vocabulary": 64, "hidden": 16, "layers": 1, "heads": 2, "max_length": 64}
    denoiser = tiny_denoiser(mask_id=MASK, eos_id=EOS, seed=0, **sizes)
    denoiser.model.base_model.register_forward_pre_hook(hook, with_kwargs=True)
    terms = method.terms(EOS)
    objective = Objective(
        terms=terms,
        denoiser=denoiser,
        reference=frozen_copy(denoiser),
        old=frozen_copy(denoiser) if updates > 1 and any(term.blend for term in terms) else None,
    )
    updater = Updater(objective=objective, optimizer=torch.optim.SGD(denoiser.parameters()), max_grad_norm=1.0)
    rollout = dry_rollout(objective.record)
    rewards = [dry_rewards(term, rollout) for term in terms]
    for update_batches in objective.prepare(rollout, rewards, Uniforms(), updates):
        updater.update(update_batches, learning_rate=0.0)
    return count[True] / GROUP, count[False] / GROUP


@every_method
def test_method_rows_forwards_are_those_of_training(method):
    rows = method_rows(method)
    trained, first, later = (
        sum(count) for count in zip(*((row.with_gradient, *row.without_gradient) for row in rows), strict=True)
    )
    assert forwards_of_training(method, updates=1) == (trained, first)
    assert forwards_of_training(method, updates=2) == (2 * trained, first + later)


# ---- what is printed ----


@pytest.mark.parametrize("columns", [110, 80])
def test_print_methods_cuts_nothing_off(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns
    shown = set(text.split())
    for row in all_rows():
        assert {word for cell in row.cells.values() for word in cell.split()} <= shown
    assert {word for meaning in LEGEND.values() for word in meaning.split()} <= shown


@pytest.mark.parametrize("columns", [110, 80])
@pytest.mark.parametrize("name", METHODS)
def test_print_method_has_all_settings_and_rows(name, columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = printed(capsys, name)
    assert "…" not in text
    method = METHODS[name]()
    assert inspect.getmodule(METHODS[name]).__doc__.strip() in text
    for leaf in leaves(method):
        assert leaf.help
        assert f"--method.{leaf.path.replace('_', '-')} " in text
        assert set(leaf.help.split()) <= set(text.split())
    for row in method_rows(method):
        assert {word for cell in row.cells.values() for word in cell.split()} <= set(text.split())


def test_print_method_of_wd1_names_its_variant(capsys):
    (line,) = [line for line in printed(capsys, "wd1").splitlines() if "positive-only" in line]
    assert line.split(maxsplit=2)[1:] == ["false", "wd1-P: no negative weights" + line[len(line.rstrip()) :]]


def test_methods_command_names_the_nearest_method(capsys):
    assert main(["methods", "expo"]) == 2
    assert capsys.readouterr().err == "unmask: error: method is 'expo': perhaps you meant 'espo', or FILE.py:NAME\n"


@pytest.mark.parametrize(("words", "mend"), [(["--markdwn"], "--markdown"), (["wd1", "spg"], "unmask methods --help")])
def test_methods_command_refuses_unknown_arguments(words, mend, capsys):
    assert main(["methods", *words]) == 2
    line = capsys.readouterr().err
    assert repr(words[-1]) in line
    assert mend in line


def test_document_is_docs_methods_md(capsys):
    page = (ROOT / "docs" / "methods.md").read_text()
    assert page == printed(capsys, "--markdown"), "run `unmask methods --markdown > docs/methods.md`"


def test_document_has_all_methods_and_settings():
    page = document()
    assert page.startswith("# Methods\n")
    for name, method in METHODS.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert f"https://arxiv.org/abs/{method.paper}" in section
        assert method.__doc__ in section
        for leaf in leaves(method()):
            assert f"| `{leaf.path}` | `" in section


def test_section_is_of_one_method(capsys):
    section = printed(capsys, "wd1", "--markdown")
    assert section.strip() in document()
    assert section.startswith("## wd1\n")
    assert "## spg" not in section


# ---- the files ----


@every_method
def test_method_is_one_short_file_that_cites_its_paper(method):
    file = Path(inspect.getsourcefile(type(method)))
    assert len(file.read_text().splitlines()) <= 60
    said = inspect.getmodule(type(method)).__doc__
    assert f"arXiv {method.paper}" in said
    assert "Provenance" in said
