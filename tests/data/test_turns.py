"""What ends a turn is found in the tokenizer, and is in no text that rewards read."""

import pytest
import torch

from helpers.chat_tokenizers import ENDLESS, ENDLESS_HEADED, FAMILIES, PLAIN, byte_tokenizer, family_tokenizer
from unmask.data.examples import Examples, encode_completions
from unmask.data.tokenization import completion_texts, encode, raw_texts
from unmask.data.turns import end_ids, end_marks
from unmask.denoisers.loading import load_tokenizer
from unmask.distributed import World
from unmask.rewards import RewardFunction, Rewards
from unmask.rewards.functions import is_cached
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks import TASKS
from unmask.training.build import build_trainer


@pytest.mark.parametrize("name", FAMILIES)
def test_end_ids_are_the_marks_of_the_family(name):
    tokenizer = family_tokenizer(name)
    _, specials, mark = FAMILIES[name]
    expected = {specials[0], mark.strip()}
    assert set(tokenizer.convert_ids_to_tokens(sorted(end_ids(tokenizer)))) == expected == set(end_marks(tokenizer))
    assert end_ids(tokenizer, 7) == end_ids(tokenizer) | {7}


@pytest.mark.parametrize("template", [None, PLAIN, ENDLESS, ENDLESS_HEADED, "{{ raise_exception('no') }}", "{% for"])
def test_end_ids_are_no_headers_and_no_words(template):
    tokenizer = byte_tokenizer(template, ("<|endoftext|>", "<|startoftext|>", "<role>", "</role>"))
    assert end_marks(tokenizer) == ("<|endoftext|>",)


@pytest.mark.parametrize("name", ["sudoku", "countdown", "arithmetic"])
def test_end_ids_of_embedded_models_are_their_eos(name):
    tokenizer = load_tokenizer(f"embedded:{name}")
    assert end_ids(tokenizer) == {tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("pad", "found"), [("[PAD]", {"<|endoftext|>", "[PAD]"}), ("<|startoftext|>", {"<|endoftext|>"})]
)
def test_end_ids_hold_pads_unless_they_stand_for_something_else(pad, found):
    tokenizer = byte_tokenizer(None, ("<|endoftext|>", "<|startoftext|>", "[PAD]"))
    assert set(end_marks(tokenizer)) == {"<|endoftext|>"}
    tokenizer.pad_token = pad
    assert set(end_marks(tokenizer)) == found


@pytest.mark.parametrize("name", FAMILIES)
def test_completion_texts_are_cut_at_the_first_end_mark(name):
    tokenizer = family_tokenizer(name)
    _, (eos, bos, *_), mark = FAMILIES[name]
    texts = [f"42{mark}", f"42{mark}{eos}{eos}", f"42{eos}7{mark}", f"4{bos}2{mark}", "42", mark]
    rows = encode(tokenizer, texts)
    space = mark.removesuffix(mark.strip())
    expected = [f"42{space}", f"42{space}", "42", f"4{bos}2{space}", "42", space]
    assert completion_texts(tokenizer, rows, tokenizer.eos_token_id) == expected
    assert raw_texts(tokenizer, rows) == texts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["sudoku", "countdown", "arithmetic"])
def test_reference_solutions_score_right_through_every_template(family, name):
    tokenizer, task = family_tokenizer(family), TASKS[name]()
    items = task.examples("train", 5, seed=0)
    examples = Examples.of(items, tokenizer, tokenizer.eos_token_id, max_prompt_tokens=500)
    rows = encode_completions(tokenizer, items, [item.solution for item in items])
    padded = [[*row, *[tokenizer.eos_token_id] * 3] for row in rows]
    texts = examples.texts(tokenizer, range(5), padded)
    rewards = task.rewards([item.prompt for item in items], texts, **examples.columns(range(5), 1))
    assert rewards == [1.0] * 5


def rewards_of(*functions):
    items = TASKS["arithmetic"]().examples("train", 2, seed=0)
    examples = Examples(items=items, prompt_ids=[[0]] * 2, eos_id=0, prefills=[""] * 2, ranked_ids=[])
    made = [RewardFunction(spec=f.__name__, name=f.__name__, call=f, cached=is_cached(f)) for f in functions]
    return Rewards(functions=tuple(made), examples=examples)


def test_reward_functions_that_name_completions_raw_are_given_them():
    cut, whole = [], []

    def short(completions, **columns):
        assert "completions_raw" not in columns
        cut.append(completions)
        return [1.0] * len(completions)

    def ended(completions, completions_raw, **columns):
        whole.append(completions_raw)
        return [float("<end>" in text) for text in completions_raw]

    rewards = rewards_of(short, ended)
    assert rewards.reads_raw
    assert not rewards_of(short).reads_raw
    found, scores = rewards([0, 0, 0], ["4", "4", "4"], ["4", "4<end>", "4"])
    assert found.tolist() == [1.0, 2.0, 1.0]
    assert cut == [["4"]]
    assert whole == [["4", "4<end>"]]  # each is asked once for what it can tell apart
    assert torch.equal(scores[:, 1], torch.tensor([0.0, 1.0, 0.0]))
    assert rewards.metrics(scores, World.single())["rewards/ended/mean"] == pytest.approx(1 / 3)


def test_reward_functions_that_name_completions_raw_are_given_them_in_training(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def ended(completions, completions_raw, **columns):\n"
        "    return [float(raw.startswith(text)) for text, raw in zip(completions, completions_raw, strict=True)]\n"
    )
    document = {
        "model": "embedded:arithmetic",
        "task": {"name": "arithmetic"},
        "method": {"name": "mdpo"},  # scores guesses too
        "reward": {"funcs": f"{file}:ended"},
        "rollout": {"prompts": 2, "num_generations": 2, "steps": 4, "max_new_tokens": 16},
        "train": {"max_steps": 1, "examples": 8, "threads": 1},
        "evaluation": {"examples": 2, "greedy_steps": 4, "batch": 4},
    }
    metrics, sample = build_trainer(build(Recipe, document)).step(0)
    assert metrics["reward"] == 1.0
    assert not any("<|endoftext|>" in text["text"] for text in sample["completions"])
