"""The model under lm-evaluation-harness: its answers are the sampler's and the bound's, whatever the batch."""

from types import SimpleNamespace

import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="needs the extra lm-eval")
pytestmark = pytest.mark.filterwarnings("default")  # of the harness's own libraries

from lm_eval.api.registry import get_model  # noqa: E402

from helpers.chat_tokenizers import CHATML, byte_tokenizer  # noqa: E402
from unmask.data.examples import Examples  # noqa: E402
from unmask.data.tokenization import completion_texts, encode, task_tokenizer  # noqa: E402
from unmask.denoisers.loading import load_denoiser  # noqa: E402
from unmask.errors import UserError  # noqa: E402
from unmask.evaluation.lm_eval.bound import Pair, lower_bounds, rows_of  # noqa: E402
from unmask.evaluation.lm_eval.model import UnmaskLM, cut  # noqa: E402
from unmask.evaluation.lm_eval.settings import HarnessSettings  # noqa: E402
from unmask.harness import main  # noqa: E402
from unmask.sampling.sampler import Sampler  # noqa: E402
from unmask.tasks import Sudoku  # noqa: E402
from unmask.uniforms import Uniforms  # noqa: E402

MODEL = "embedded:sudoku"
ITEMS = Sudoku().examples("test", 6, 1)


def model(batch_size=4, **settings):
    return UnmaskLM(batch_size=batch_size, model=MODEL, **settings)


def requests(*arguments):
    return [SimpleNamespace(args=pair) for pair in arguments]


def asked(**options):
    """Requests to solve the puzzles."""
    return requests(*((item.prompt, {"until": [], "max_gen_toks": 16} | options) for item in ITEMS))


def sampled(steps):
    """Greedy solutions of the puzzles by the sampler itself."""
    lm = model()
    sampler = Sampler(max_new_tokens=16, block_length=16, steps=steps)
    examples = Examples.of(ITEMS, lm.tokenizer, lm.denoiser.eos_id, 48)
    rollout = sampler(lm.denoiser, examples.prompts(range(len(ITEMS)), 1), Uniforms())
    return completion_texts(lm.tokenizer, rollout.tokens_NL[:, rollout.prompt_length :].tolist(), lm.denoiser.eos_id)


def test_generate_until_gives_the_samplers_completions():
    assert model().generate_until(asked()) == sampled(16)
    assert model(steps="/4").generate_until(asked()) == model(steps=4).generate_until(asked()) == sampled(4)
    assert sampled(16) != sampled(4)


def test_generate_until_cuts_and_obeys_the_tasks_length():
    whole, parts = model().generate_until(asked()), model().generate_until(asked(until=["4", "21"]))
    assert parts == [cut(text, ["4", "21"]) for text in whole]
    assert all("4" not in text and "21" not in text for text in parts)
    assert cut("one two", ["two", "e"]) == "on"
    assert {len(text) for text in model().generate_until(asked(max_gen_toks=8))} == {8}
    assert {len(text) for text in model(max_new_tokens=4).generate_until(asked())} == {4}


def test_generate_until_cuts_at_or_leaves_out_special_tokens():
    lm = model()
    row = encode(lm.tokenizer, ["12"])[0] + [lm.tokenizer.mask_token_id] + encode(lm.tokenizer, ["34"])[0]
    assert lm._text([*row, lm.eot_token_id, row[0]], []) == "1234"
    assert lm._text(row, [lm.tokenizer.mask_token]) == "12"
    lm.denoiser.other_end_ids = (row[-1],)
    assert lm._text(row, []) == "123"


def test_generate_until_draws_depend_on_the_request_alone():
    drawn = asked(do_sample=True, temperature=8.0)  # hot: draws decide
    texts = model(batch_size=2).generate_until(drawn)
    assert texts == model(batch_size=5).generate_until(drawn[::-1])[::-1]
    assert texts != model(seed=1).generate_until(drawn)
    assert texts != model(temperature=0.0).generate_until(drawn) == sampled(16)
    twice = model().generate_until([request for request in drawn for _ in range(2)])
    assert twice[::2] == texts
    assert twice[1::2] != texts


def test_loglikelihood_is_the_bound_and_greedy_the_samplers():
    pairs = [(item.prompt, text) for item, text in zip(ITEMS, sampled(16), strict=True)]
    pairs += [(ITEMS[0].prompt, pairs[0][1][:3]), (ITEMS[0].prompt, "4444"), ("", "1234")]
    answers = model(batch_size=3).loglikelihood(requests(*pairs))
    bounds, greedy = zip(*answers, strict=True)
    assert greedy[:6] == (True,) * 6
    assert not greedy[7]
    assert bounds[7] < bounds[6] < 0
    lm = model()
    ids = [Pair(lm.tok_encode(context), lm.tok_encode(target)) for context, target in pairs]
    exact = lower_bounds(lm.denoiser, ids[6:], rows_of(ids[6:], 15, Uniforms()), 8)
    assert bounds[6:] == pytest.approx(exact, abs=1e-5)
    other = model(batch_size=50, check_greedy=False).loglikelihood(requests(*pairs[::-1]))[::-1]
    assert [bound for bound, _ in other] == pytest.approx(bounds, abs=1e-4)
    assert not any(told for _, told in other)


def test_loglikelihood_of_a_token_that_spans_context_and_continuation_is_not_one():
    lm = model()
    lm.tokenizer = task_tokenizer(("1", "2", "3", "12"))
    (spanning, _), (other, _) = lm.loglikelihood(requests(("1", "2"), ("1", "3")))
    assert spanning < 0
    assert other < 0


def test_loglikelihood_rolling_of_a_long_text_sums_its_windows():
    lm = model(masks=4)
    size = lm.denoiser.max_length
    text = "".join(item.solution for item in ITEMS)
    assert len(text) > size
    (bound,) = lm.loglikelihood_rolling(requests((text,)))
    windows = [Pair([], lm.tok_encode(text)[start : start + size]) for start in range(0, len(text), size)]
    assert bound == pytest.approx(sum(lm._bounds(windows, lm.uniforms.key(text))))
    assert bound < 0


def test_apply_chat_template_is_the_tokenizers_or_refused():
    lm = model()
    with pytest.raises(UserError, match="drop --apply_chat_template"):
        lm.apply_chat_template([{"role": "user", "content": "1"}])
    lm.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}>{% endif %}"
    )
    assert lm.apply_chat_template([{"role": "user", "content": "1"}]) == "[1]>"
    assert lm.chat_template(True) == lm.tokenizer.chat_template


@pytest.mark.parametrize(
    ("settings", "mend"),
    [
        ({"stepz": 3}, "perhaps you meant 'steps'"),
        ({"steps": "fast"}, "give a number such as 64"),
        ({"unmasking": "lowconfidence"}, "low_confidence"),
        ({"batch_size": "auto"}, "give a number of sequences"),
        ({"dtype": "float8"}, "bfloat16"),
        ({"unmasking": "threshold", "steps": "/2"}, "steps would not be read: unmasking is threshold"),
    ],
)
def test_harness_model_refuses_settings_that_are_none(settings, mend):
    with pytest.raises(UserError, match=mend):
        model(**settings)


def test_harness_model_refuses_requests_that_do_not_fit_before_any_work():
    with pytest.raises(UserError, match="lower --num_fewshot or max_new_tokens"):
        model().generate_until(asked(max_gen_toks=512))
    with pytest.raises(UserError, match="lower --num_fewshot"):
        model().loglikelihood(requests(("1" * 60, "1" * 60)))
    lm = model()
    lm.denoiser.block_length = 4
    with pytest.raises(UserError, match="choose tasks that generate"):
        lm.loglikelihood(requests(("1", "2")))


def test_harness_model_takes_bfloat16_weights():
    assert next(model(dtype="bfloat16").denoiser.parameters()).dtype == torch.bfloat16
    assert next(load_denoiser(MODEL).parameters()).dtype == torch.float32


def test_harness_makes_the_model_by_name():
    words = f"model={MODEL},steps=8,block_length=4,unmasking=rcr,masks=4,temperature=0.5"
    lm = get_model("unmask").create_from_arg_string(
        words, {"batch_size": 8, "max_batch_size": None, "device": "cuda:0"}
    )
    assert lm.batch == 8
    assert lm.settings == HarnessSettings(
        model=MODEL, steps="8", block_length=4, unmasking="rcr", masks=4, temperature=0.5
    )


def test_harness_tells_a_wrong_command_line_in_one_line(monkeypatch, capsys):
    def create(words):
        return get_model("unmask").create_from_arg_string(words)

    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: create("model=embedded:sudoku,mask=4"))
    assert main() == 2
    assert "perhaps you meant 'masks'" in capsys.readouterr().err


def test_tok_encode_gives_contexts_one_bos():
    lm = model()
    lm.tokenizer = byte_tokenizer(
        CHATML, ("<|endoftext|>", "<|beginoftext|>", "<|im_start|>", "<|im_end|>"), add_bos=True
    )
    bos, text = lm.tokenizer.bos_token_id, encode(lm.tokenizer, ["12"])[0]
    assert lm.tok_encode("12") == lm.tok_encode("<|beginoftext|>12") == [bos, *text]
    assert lm.tok_encode("12", add_special_tokens=False) == text
    assert lm._encode_pair("12", " 3") == ([bos, *text], encode(lm.tokenizer, [" 3"])[0])
    worded = lm.apply_chat_template([{"role": "user", "content": "12"}])
    assert bos not in lm.tok_encode(worded)
