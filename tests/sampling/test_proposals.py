"""Draws at a large vocabulary, from logits in half precision, follow the exact softmax of those logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers.small import surprise
from unmask.denoisers.head import vocabulary as slices
from unmask.denoisers.head import workspace
from unmask.denoisers.head.vocabulary import GivenLogits, HeadLogits
from unmask.denoisers.head.workspace import Workspace
from unmask.sampling.proposals import Propose, draw, greedy
from unmask.sampling.unmasking import margin, negative_entropy, probability
from unmask.uniforms import Uniforms

VOCABULARY, MASK = 126_464, 126_336
DRAWS = 200_000


def logits_of() -> torch.Tensor:
    """In bf16, as a head under autocast gives them: sixty likely tokens share half of it, a long tail the rest."""
    generator = torch.Generator().manual_seed(0)
    logits_1V = torch.randn(1, VOCABULARY, generator=generator) * 2
    logits_1V[0, torch.randperm(VOCABULARY, generator=generator)[:60]] = torch.linspace(8, 11, 60)
    return logits_1V.bfloat16()


def exact_distribution(logits_1V):
    probability_V = logits_1V[0].double()
    probability_V[MASK] = -float("inf")
    return probability_V.softmax(0)


def binned(tokens, probability_V):
    """Counts and probabilities in a hundred bins of about equal mass, likely tokens first."""
    order = probability_V.argsort(descending=True)
    bin_V = torch.empty(VOCABULARY, dtype=torch.long)
    bin_V[order] = (probability_V[order].cumsum(0) * 100).long().clamp(max=99)
    probabilities = torch.zeros(100, dtype=torch.float64).index_add(0, bin_V, probability_V)
    return bin_V[tokens].bincount(minlength=100), probabilities


def drawn(logits_1V, draws=DRAWS, temperature=1.0):
    uniform_QZ = Uniforms().key("distribution", torch.arange(draws)[None]).draw()
    reducer = Propose(
        temperature=temperature, mask_id=MASK, measure=probability, uniform_QZ=uniform_QZ, draws=draws, stride=draws
    )
    return [part[0] for part in reducer.from_logits(logits_1V.clone(), slice(0, 1))]


@pytest.mark.parametrize("temperature", [1.0, 0.9])
def test_draws_follow_the_exact_distribution(temperature):
    logits_1V = logits_of()
    tokens, logp, _ = drawn(logits_1V, temperature=temperature)
    probability_V = exact_distribution(logits_1V.float() / temperature)
    assert abs(surprise(*binned(tokens, probability_V))) < 4
    entropy = -(probability_V * probability_V.clamp(min=1e-300).log()).sum()
    deviation = (probability_V * (probability_V.clamp(min=1e-300).log() + entropy).square()).sum().sqrt()
    assert float(-logp.double().mean()) == pytest.approx(float(entropy), abs=4 * float(deviation) / DRAWS**0.5 + 1e-3)
    assert MASK not in tokens
    scored = (logits_1V.double() / temperature).log_softmax(1)[0]  # the mask token keeps its part here
    torch.testing.assert_close(logp.double(), scored[tokens], rtol=1e-5, atol=1e-5)


def test_gumbel_noise_in_half_precision_is_noticed():
    """Public samplers draw Gumbel noise in the logits' precision: the tail is lost, and entropy with it."""
    logits_1V, draws = logits_of(), 2000
    generator = torch.Generator().manual_seed(0)
    probability_V = exact_distribution(logits_1V)
    masked_V = logits_1V[0].clone()
    masked_V[MASK] = -float("inf")
    tokens = []
    for _ in range(draws // 50):
        noise = torch.rand((50, VOCABULARY), generator=generator, dtype=torch.bfloat16)
        tokens.append((masked_V.exp() / -torch.log(noise)).argmax(1))
    tokens = torch.cat(tokens)
    assert surprise(*binned(tokens, probability_V)) > 10
    exact, _, _ = drawn(logits_1V, draws)
    assert abs(surprise(*binned(exact, probability_V))) < 4


def head_of(vocabulary=VOCABULARY, positions=1, dtype=torch.bfloat16, width=16):
    """Hidden states and a head's weight; logits have a standard deviation of 3."""
    generator = torch.Generator().manual_seed(0)
    hidden_CD = torch.randn(positions, width, generator=generator)
    return hidden_CD.to(dtype), (torch.randn(vocabulary, width, generator=generator) * 3 / width**0.5).to(dtype)


@pytest.mark.parametrize("cast", [False, True], ids=["bf16", "autocast"])
@pytest.mark.parametrize("temperature", [1.0, 0.9])
def test_draws_from_a_head_follow_the_exact_distribution(temperature, cast):
    """Slice by slice in bf16, the fold that a draw falls into made once more; or a float32 head, cast as a whole."""
    hidden_1D, weight_VD = head_of(dtype=torch.float32 if cast else torch.bfloat16)
    uniform_1Z = Uniforms().key("distribution", torch.arange(DRAWS)[None]).draw()
    with torch.autocast("cpu", torch.bfloat16, enabled=cast):
        proposed = draw(HeadLogits(hidden_1D, weight_VD, MASK, Workspace()), uniform_1Z, temperature)
    logits_1V = (hidden_1D.bfloat16() @ weight_VD.bfloat16().t()).float() / temperature
    assert abs(surprise(*binned(proposed.tokens_CZ[0], exact_distribution(logits_1V)))) < 4
    scored = logits_1V.double().log_softmax(1).gather(1, proposed.tokens_CZ)
    assert float((proposed.logp_CZ - scored).abs().mean()) < 1e-3  # another kernel may round a bf16 logit otherwise


def drawn_at_once(logits_CV, uniform_CZ, temperature, mask_id):
    """As the words say it: inverse CDF of the whole row, in float64."""
    weight_CV = (logits_CV.double() / temperature).softmax(1)
    weight_CV[:, mask_id] = 0.0
    cdf_CV = weight_CV.cumsum(1)
    return torch.searchsorted(cdf_CV, uniform_CZ * cdf_CV[:, -1:], right=True)


@pytest.mark.parametrize("width", [64, 128, 4096])
@pytest.mark.parametrize(("vocabulary", "mask_id"), [(7, 3), (640, 0), (641, 640), (1000, 130), (1000, 999)])
def test_draw_and_greedy_by_slices_equal_the_whole_row(vocabulary, mask_id, width, monkeypatch):
    """Whatever the slices, whether they divide the vocabulary, wherever the mask token is: alone in one (641) too."""
    monkeypatch.setattr(workspace, "_CACHED_WIDTH", width)
    monkeypatch.setattr(slices, "_LONG", width // 2)
    hidden_CD, weight_VD = head_of(vocabulary, positions=5, dtype=torch.float32)
    logits_CV = hidden_CD @ weight_VD.t()
    normalizer_C, kept_CV = logits_CV.logsumexp(1), logits_CV.index_fill(1, torch.tensor([mask_id]), -float("inf"))
    uniform_CZ = torch.rand((5, 400), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for make in (
        lambda: HeadLogits(hidden_CD, weight_VD, mask_id, Workspace()),
        lambda: GivenLogits(logits_CV, mask_id, Workspace()),
    ):
        best = greedy(make())
        assert torch.equal(best.tokens_CZ[:, 0], kept_CV.argmax(1))
        expected = logits_CV.log_softmax(1).gather(1, best.tokens_CZ)
        torch.testing.assert_close(best.logp_CZ, expected, atol=2e-6, rtol=2e-6)
        for temperature in (1.0, 0.7):
            proposed = draw(make(), uniform_CZ, temperature)
            at_once = drawn_at_once(logits_CV, uniform_CZ, temperature, mask_id)
            assert (proposed.tokens_CZ == at_once).float().mean() > 0.998  # sums are rounded otherwise
            assert mask_id not in proposed.tokens_CZ
            logp_CZ = (logits_CV / temperature).log_softmax(1).gather(1, proposed.tokens_CZ)
            torch.testing.assert_close(proposed.logp_CZ, logp_CZ, atol=5e-6, rtol=5e-6)
            torch.testing.assert_close(proposed.logits_CZ, logits_CV.gather(1, proposed.tokens_CZ), atol=5e-6, rtol=0.0)
            torch.testing.assert_close(proposed.normalizer_C, normalizer_C, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("width", [64, 4096])
def test_greedy_takes_the_first_of_equals_and_draw_reaches_both_ends(width, monkeypatch):
    monkeypatch.setattr(workspace, "_CACHED_WIDTH", width)
    logits_CV = (torch.rand((5, 1200), generator=torch.Generator().manual_seed(0)) * 4).floor()
    logits_CV[:, ::3] = -float("inf")
    mask_id = 1199
    tokens = greedy(GivenLogits(logits_CV, mask_id, Workspace())).tokens_CZ[:, 0]
    assert torch.equal(tokens, logits_CV[:, :mask_id].argmax(1))
    edges_CZ = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64).expand(5, 2)
    assert draw(GivenLogits(logits_CV, mask_id, Workspace()), edges_CZ, 1.0).tokens_CZ.tolist() == [[1, 1198]] * 5


class Largest(TorchDispatchMode):
    """The most numbers that a tensor had which an operator made."""

    most = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        made = operator(*arguments, **(keywords or {}))
        tensors = [each for each in tree_leaves(made) if isinstance(each, torch.Tensor)]
        self.most = max([self.most, *(each.numel() for each in tensors if not each._is_view())])
        return made


def plain_head(weight_VD):
    head = torch.nn.Linear(*reversed(weight_VD.shape), bias=False, device="meta")
    head.weight = torch.nn.Parameter(weight_VD, requires_grad=False)
    return head


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_propose_by_slices_never_holds_all_logits(temperature):
    positions = 96
    hidden_CD, weight_VD = head_of(positions=positions, dtype=torch.float32)
    uniform_QZ = torch.rand((positions, 1), dtype=torch.float64) if temperature else None
    reducer = Propose(temperature=temperature, mask_id=MASK, measure=probability, uniform_QZ=uniform_QZ)
    head = plain_head(weight_VD)
    with Largest() as largest:
        reducer.from_head(hidden_CD, head, Workspace())
    assert positions * 1000 < largest.most < positions * VOCABULARY / 20


# ---- ids beyond the tokenizer ----


@pytest.mark.parametrize(("vocabulary", "spelt"), [(40, 33), (5_000, 4_470), (5_000, 1_999), (40, 40), (40, 50)])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("way", ["logits", "head"])
def test_propose_never_proposes_ids_beyond_the_tokenizer(vocabulary, spelt, temperature, way):
    """They are the likeliest by far; they keep their part of the normalizer, as in scoring."""
    mask_id, generator = 3, torch.Generator().manual_seed(0)
    hidden_QD = torch.randn(30, 8, generator=generator)
    head = torch.nn.Linear(8, vocabulary, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, 8, generator=generator))
        head.weight[spelt:] *= 3
        logits_QV = head(hidden_QD)
        uniform_QZ = torch.rand(30, 4, generator=generator, dtype=torch.float64) if temperature else None
        reducer = Propose(
            temperature=temperature, mask_id=mask_id, measure=probability, uniform_QZ=uniform_QZ, draws=4, spelt=spelt
        )
        if way == "logits":
            tokens_QZ, logp_QZ, _ = reducer.from_logits(logits_QV, slice(0, 30))
        else:
            tokens_QZ, logp_QZ, _ = reducer.from_head(hidden_QD, head, Workspace())
    assert int(tokens_QZ.max()) < spelt
    logp_QV = (logits_QV.double() / (temperature or 1)).log_softmax(1)
    torch.testing.assert_close(logp_QZ.double(), logp_QV.gather(1, tokens_QZ), rtol=1e-4, atol=1e-4)
    if not temperature:
        logp_QV[:, mask_id] = logp_QV[:, spelt:] = -float("inf")
        assert torch.equal(tokens_QZ[:, 0], logp_QV.argmax(1))


@pytest.mark.parametrize(
    ("vocabulary", "spelt", "holes"),
    [
        (40, 38, (range(1), range(9, 14), range(30, 31))),
        (5_000, 4_470, (range(60, 70), range(1_990, 2_130), range(4_400, 4_401))),
        (5_000, None, (range(2_048, 4_096), range(4_999, 5_000))),  # whole slices, and the last
        (5_000, None, (range(4_990),)),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("way", ["logits", "head"])
def test_propose_never_proposes_ids_in_holes(vocabulary, spelt, holes, temperature, way):
    """They are the likeliest by far; they keep their part of the normalizer, as in scoring."""
    generator, never = torch.Generator().manual_seed(0), [3, *(token for hole in holes for token in hole)]
    never += range(spelt or vocabulary, vocabulary)
    hidden_QD, head = torch.randn(30, 8, generator=generator), torch.nn.Linear(8, vocabulary, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, 8, generator=generator))
        head.weight[never] *= 2
        logits_QV = head(hidden_QD)
        uniform_QZ = torch.rand(30, 4, generator=generator, dtype=torch.float64) if temperature else None
        reducer = Propose(
            temperature=temperature,
            mask_id=3,
            measure=probability,
            uniform_QZ=uniform_QZ,
            draws=4,
            spelt=spelt,
            holes=holes,
        )
        if way == "logits":
            tokens_QZ, logp_QZ, _ = reducer.from_logits(logits_QV, slice(0, 30))
        else:
            tokens_QZ, logp_QZ, _ = reducer.from_head(hidden_QD, head, Workspace())
    assert not set(tokens_QZ.flatten().tolist()) & set(never)
    logp_QV = (logits_QV.double() / (temperature or 1)).log_softmax(1)
    torch.testing.assert_close(logp_QZ.double(), logp_QV.gather(1, tokens_QZ), rtol=1e-4, atol=1e-4)
    logp_QV[:, never] = -float("inf")
    if temperature:
        cdf_QV = logp_QV.exp().cumsum(1)
        expected_QZ = torch.searchsorted(cdf_QV, uniform_QZ * cdf_QV[:, -1:], right=True)
        assert (tokens_QZ == expected_QZ).float().mean() > 0.95  # up to rounding
    else:
        assert torch.equal(tokens_QZ[:, 0], logp_QV.argmax(1))


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_propose_is_bit_equal_where_the_tokenizer_knows_every_id(temperature):
    logits_1V = logits_of()
    uniform_QZ = Uniforms().key("equal", torch.arange(9)[None]).draw() if temperature else None
    options = {
        "temperature": temperature,
        "mask_id": MASK,
        "measure": probability,
        "uniform_QZ": uniform_QZ,
        "draws": 9,
    }
    found = [Propose(**options, spelt=spelt).from_logits(logits_1V, slice(0, 1)) for spelt in (None, VOCABULARY)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("measure", [margin, negative_entropy])
def test_propose_measures_no_confidence_in_the_mask_token(measure, temperature):
    """Of what is never proposed only the part in the normalizer counts: here the mask token takes half of it."""
    mask_id, logits_1V = 3, torch.tensor([[2.0, 1.0, 0.0, 0.0]])
    logits_1V[0, mask_id] = logits_1V[0, :mask_id].logsumexp(0)
    uniform_11 = torch.full((1, 1), 0.5, dtype=torch.float64) if temperature else None
    reducer = Propose(temperature=temperature, mask_id=mask_id, measure=measure, uniform_QZ=uniform_11)
    _, _, confidence_11 = reducer.from_logits(logits_1V, slice(0, 1))
    p_V = logits_1V.softmax(1)[0, :mask_id]
    expected = {margin: p_V[0] - p_V[1], negative_entropy: (p_V * p_V.log()).sum()}[measure]
    assert confidence_11.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("measure", [margin, negative_entropy])
def test_propose_confidence_leaves_out_ids_beyond_the_tokenizer(measure):
    """What is never proposed is no rival of the proposal: its logits may be what they like."""
    logits_QV = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    logits_QV[:, 10:] = 8.0

    logits_QV[:, 5] = 9.0
    reducer = Propose(temperature=0.0, mask_id=3, measure=measure, uniform_QZ=None, spelt=10, holes=(range(5, 6),))
    token_QZ, _, ours = reducer.from_logits(logits_QV, slice(0, 4))
    assert not set(token_QZ.flatten().tolist()) & {5, 10, 11}
    normalizer_Q = logits_QV.logsumexp(1)
    kept_QV = logits_QV.clone()
    kept_QV[:, [3, 5, 10, 11]] = -1e30
    torch.testing.assert_close(ours, measure(kept_QV, normalizer_Q, token_QZ))
    assert not torch.allclose(ours, measure(logits_QV, normalizer_Q, token_QZ))
