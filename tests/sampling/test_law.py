"""The sampler's law at a large vocabulary, from logits in half precision: the exact softmax of those logits."""

import pytest
import torch

from small import surprise
from unmask.proposals import Propose, inverse_cdf, largest
from unmask.uniforms import Uniforms
from unmask.unmasking import probability

VOCABULARY, MASK = 126_464, 126_336
DRAWS = 200_000


def logits_of() -> torch.Tensor:
    """In bf16, as a head under autocast gives them: sixty likely tokens share half of it, a long tail the rest."""
    generator = torch.Generator().manual_seed(0)
    logits_1V = torch.randn(1, VOCABULARY, generator=generator) * 2
    logits_1V[0, torch.randperm(VOCABULARY, generator=generator)[:60]] = torch.linspace(8, 11, 60)
    return logits_1V.bfloat16()


def exact_law(logits_1V):
    law_V = logits_1V[0].double()
    law_V[MASK] = -float("inf")
    return law_V.softmax(0)


def binned(tokens, law_V):
    """Counts and probabilities in a hundred bins of about equal mass, likely tokens first."""
    order = law_V.argsort(descending=True)
    bin_V = torch.empty(VOCABULARY, dtype=torch.long)
    bin_V[order] = (law_V[order].cumsum(0) * 100).long().clamp(max=99)
    law = torch.zeros(100, dtype=torch.float64).index_add(0, bin_V, law_V)
    return bin_V[tokens].bincount(minlength=100), law


def drawn(logits_1V, draws=DRAWS, temperature=1.0):
    uniform_QZ = Uniforms().key("law", torch.arange(draws)[None]).draw()
    answer = Propose(
        temperature=temperature, mask_id=MASK, measure=probability, uniform_QZ=uniform_QZ, draws=draws, stride=draws
    )
    return [part[0] for part in answer(logits_1V.clone(), slice(0, 1))]


@pytest.mark.parametrize("temperature", [1.0, 0.9])
def test_draws_follow_the_exact_law(temperature):
    logits_1V = logits_of()
    tokens, logp, _ = drawn(logits_1V, temperature=temperature)
    law_V = exact_law(logits_1V.float() / temperature)
    assert abs(surprise(*binned(tokens, law_V))) < 4
    entropy = -(law_V * law_V.clamp(min=1e-300).log()).sum()
    deviation = (law_V * (law_V.clamp(min=1e-300).log() + entropy).square()).sum().sqrt()
    assert float(-logp.double().mean()) == pytest.approx(float(entropy), abs=4 * float(deviation) / DRAWS**0.5 + 1e-3)
    assert MASK not in tokens
    scored = (logits_1V.double() / temperature).log_softmax(1)[0]  # the mask token keeps its part here
    torch.testing.assert_close(logp.double(), scored[tokens], rtol=1e-5, atol=1e-5)


def test_noise_in_half_precision_is_noticed():
    """Public samplers draw Gumbel noise in the logits' precision: the tail is lost, and entropy with it."""
    logits_1V, draws = logits_of(), 2000
    generator = torch.Generator().manual_seed(0)
    law_V = exact_law(logits_1V)
    masked_V = logits_1V[0].clone()
    masked_V[MASK] = -float("inf")
    tokens = []
    for _ in range(draws // 50):
        noise = torch.rand((50, VOCABULARY), generator=generator, dtype=torch.bfloat16)
        tokens.append((masked_V.exp() / -torch.log(noise)).argmax(1))
    tokens = torch.cat(tokens)
    assert surprise(*binned(tokens, law_V)) > 10
    exact, _, _ = drawn(logits_1V, draws)
    assert abs(surprise(*binned(exact, law_V))) < 4


def test_a_search_by_folds_is_a_search():
    generator = torch.Generator().manual_seed(0)
    for vocabulary in (7, 1000, 256 * 9):  # the last is folded
        weight_CV = torch.rand((5, vocabulary), generator=generator) ** 4
        weight_CV[:, ::3] = 0.0
        uniform_CZ = torch.rand((5, 400), generator=generator, dtype=torch.float64)
        cdf_CV = weight_CV.double().cumsum(1)
        expected = torch.searchsorted(cdf_CV, uniform_CZ * cdf_CV[:, -1:], right=True)
        tokens_CZ = inverse_cdf(weight_CV, uniform_CZ)
        assert (tokens_CZ == expected).float().mean() > 0.999  # sums of folds round otherwise
        assert bool((weight_CV.gather(1, tokens_CZ) > 0).all())
        edges_CZ = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64).expand(5, 2)
        ends = inverse_cdf(weight_CV, edges_CZ)
        positive = [row.nonzero()[:, 0] for row in weight_CV]
        assert ends.tolist() == [[int(row[0]), int(row[-1])] for row in positive]
        ties_CV = (weight_CV * 8).floor()
        assert torch.equal(largest(ties_CV), ties_CV.argmax(1))
