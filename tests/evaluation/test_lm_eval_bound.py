"""The bound of log p(target | context): by enumeration, against all orders; drawn; LLaDA's own numbers."""

import sys
from itertools import permutations

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from conftest import reference_cases
from helpers.reference_tools import MASK, close
from helpers.small import small_denoiser
from unmask.data.tokenization import encode, task_tokenizer
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.evaluation.lm_eval.bound import Pair, Row, drawn_masks, every_mask, lower_bounds, pair_of, rows_of
from unmask.evaluation.lm_eval.settings import HarnessSettings
from unmask.harness import main
from unmask.uniforms import Uniforms

PAIR = Pair([1, 2, 3], [4, 5, 6, 0])


def chain_by_orders(denoiser, pair):
    """log p of the target for each order in which it may be written, one token a forward."""
    logs = []
    for order in permutations(range(len(pair.target))):
        canvas, total = [*pair.context, *[denoiser.mask_id] * len(pair.target)], 0.0
        for place in order:
            column, token = len(pair.context) + place, pair.target[place]
            tokens, reducer = torch.tensor([canvas]), TargetLogProb(torch.tensor([[token]]))
            with torch.no_grad():
                (logp,) = denoiser(tokens, torch.ones_like(tokens).bool(), torch.tensor([[column]]), reducer)
            total, canvas[column] = total + float(logp), token
        logs.append(total)
    return torch.tensor(logs, dtype=torch.float64)


def bound(denoiser, pair, masks, seed=0, batch=64):
    return lower_bounds(denoiser, [pair], rows_of([pair], masks, Uniforms().key(seed)), batch)[0]


@pytest.mark.parametrize("pair", [PAIR, Pair([], [4, 5, 6]), Pair([7], [2])])
def test_lower_bounds_enumerated_are_the_mean_over_all_orders(pair):
    denoiser = small_denoiser()
    by_orders = chain_by_orders(denoiser, pair)
    exact = bound(denoiser, pair, masks=15)
    assert exact == pytest.approx(float(by_orders.mean()), abs=1e-4)
    assert exact <= float(by_orders.logsumexp(0) - torch.tensor(float(len(by_orders))).log()) + 1e-6
    assert bound(denoiser, pair, masks=15, seed=1) == exact


def test_lower_bounds_of_drawn_masks_estimate_the_enumerated():
    denoiser = small_denoiser()
    exact = bound(denoiser, PAIR, masks=15)
    estimates = torch.tensor([bound(denoiser, PAIR, masks=8, seed=seed) for seed in range(200)])
    error = estimates.std() / len(estimates) ** 0.5
    assert 0 < error < 0.05 * abs(exact)
    assert abs(float(estimates.mean()) - exact) < 4 * error


@pytest.mark.parametrize(("length", "masks"), [(5, 10), (7, 3), (3, 128), (64, 1)])
def test_drawn_masks_spread_counts_evenly(length, masks):
    counts = torch.zeros(length)
    for seed in range(300):
        masked, weight = drawn_masks(length, masks, Uniforms().key(seed))
        count = masked.sum(1)
        torch.testing.assert_close(weight, length / (count.double() * masks))
        counts += torch.bincount(count - 1, minlength=length)
        if masks % length == 0:
            assert set(torch.bincount(count - 1, minlength=length).tolist()) <= {masks // length}
    expected = 300 * masks / length
    assert (counts - expected).abs().max() < 5 * expected**0.5 + 1


def test_every_mask_weights_are_probability_times_length_over_count():
    masked, weight = every_mask(4)
    assert len(masked) == len(set(map(tuple, masked.tolist()))) == 15
    probability = weight * masked.sum(1) / 4
    assert float(probability.sum()) == pytest.approx(1)
    assert [float(probability[masked.sum(1) == count].sum()) for count in (1, 2, 3, 4)] == pytest.approx([0.25] * 4)


def test_lower_bounds_do_not_depend_on_batch_or_other_pairs():
    denoiser = small_denoiser()
    pairs = [PAIR, Pair([1], [2, 3, 4, 5, 6]), Pair([], [7, 1]), Pair([3] * 9, [1, 2, 3, 4])]
    alone = [bound(denoiser, pair, masks=12) for pair in pairs]
    for batch in (1, 5, 100):
        together = lower_bounds(denoiser, pairs[::-1], rows_of(pairs[::-1], 12, Uniforms().key(0)), batch)
        assert together[::-1] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("case", reference_cases("methods/llada_log_likelihood"), ids=lambda case: case["name"])
def test_lower_bounds_on_stored_masks_are_lladas_numbers(case, llada_tiny):
    pair = Pair(case["tensors"]["prompt"].tolist(), case["tensors"]["answer"].tolist())
    length = len(pair.target)
    masked = case["tensors"]["masked_views"].flatten(0, 1)[:, -length:] == MASK
    rows = [Row(0, row, length / (int(row.sum()) * len(masked))) for row in masked]
    close(lower_bounds(llada_tiny, [pair], iter(rows), 3, case["cfg_scale"]), [case["log_likelihood"]])


@pytest.mark.parametrize(("given", "count"), [("/1", 32), ("/2", 16), ("/100", 1), ("8", 8)])
def test_harness_settings_steps_by_number_and_by_tokens(given, count):
    assert HarnessSettings(model="any", steps=given).sampler(32, 0.0, None).steps == count


def test_harness_names_the_extra_where_it_is_missing(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "unmask.evaluation.lm_eval.model", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    assert main() == 2
    assert "pip install 'unmask[lm-eval]'" in capsys.readouterr().err


# ---- contexts and continuations as tokens ----


def byte_level(trim_offsets):
    """A byte-level BPE that has merged often seen pairs, as those of real models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    texts = [
        "the answer is yes",
        "the answer is no",
        "answer: 12",
        "12 and 123",
        "naïve café",
        "is it so?\n\nit is",
    ] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")  # noqa: S106


def test_pair_of_gives_a_token_that_spans_both_to_the_target():
    tokenizer = task_tokenizer(("1", "2", "3", "12"))
    ids = dict(tokenizer.get_vocab())
    assert pair_of(tokenizer, "1", "2") == Pair([], [ids["12"]])
    assert pair_of(tokenizer, "1", "3") == Pair([ids["1"]], [ids["3"]])
    assert pair_of(tokenizer, "31", "21") == Pair([ids["3"]], [ids["12"], ids["1"]])
    assert pair_of(tokenizer, "", "12") == Pair([], [ids["12"]])
    assert pair_of(tokenizer, "12", "") == Pair([ids["12"]], [])
    assert pair_of(tokenizer, "", "") == Pair([], [])


@pytest.mark.parametrize("trim_offsets", [True, False])
def test_pair_of_is_one_spelling_of_the_whole(trim_offsets):
    tokenizer = byte_level(trim_offsets)
    for whole in (
        "the answer is yes",
        "is it so?\n\nit is",
        "a naïve café 🙂 12  ",
        " \n ",
        "<|end|>the answer<|end|> is",
    ):
        for cut in range(len(whole) + 1):
            pair = pair_of(tokenizer, whole[:cut], whole[cut:])
            assert [*pair.context, *pair.target] == encode(tokenizer, [whole])[0]
            assert bool(pair.target) == bool(whole[cut:])
            if whole[cut - 1 :].strip() == whole[cut - 1 :]:
                assert whole[:cut].startswith(tokenizer.decode(pair.context))
    assert tokenizer.decode(pair_of(tokenizer, "the answer is ", "yes").target) == " yes"
    assert tokenizer.decode(pair_of(tokenizer, "the answer is", " yes").target) == " yes"
