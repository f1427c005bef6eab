"""Tokenizers spell their tasks and refuse other text; prompts are padded left; completions end at the end token."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from helpers.chat_tokenizers import CHATML, FAMILIES, byte_tokenizer
from unmask.data.chat import ChatSettings
from unmask.data.example import Example
from unmask.data.examples import Examples, rollout_texts
from unmask.data.tokenization import (
    completion_texts,
    encode,
    encode_prompts,
    leading_ids,
    left_pad,
    task_tokenizer,
    token_names,
    token_texts,
)
from unmask.errors import UserError
from unmask.tasks import TASKS
from unmask.types import Rollout


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task().vocabulary])
def test_task_tokenizer_round_trips_every_prompt_and_solution(name):
    task = TASKS[name]()
    tokenizer = task_tokenizer(task.vocabulary)
    items = task.examples("train", 50, seed=3)
    for texts in ([item.prompt for item in items], [item.solution for item in items]):
        rows = encode(tokenizer, texts)
        assert completion_texts(tokenizer, rows, tokenizer.eos_token_id) == texts
    assert max(len(row) for row in encode(tokenizer, [item.solution for item in items])) <= task.max_new_tokens


def test_task_tokenizer_makes_a_number_one_token():
    tokenizer = task_tokenizer(("1", "2", "12", "+"))
    assert encode(tokenizer, ["12+2", "1+12"]) == [[2, 3, 1], [0, 3, 2]]


@pytest.mark.parametrize("text", ["", "1x", "½"])
def test_encode_refuses_text_that_cannot_be_spelt(text):
    with pytest.raises(UserError, match="cannot spell"):
        encode(task_tokenizer(("1", "2")), [text])


def test_left_pad_pads_on_the_left():
    tokens, attention = left_pad([[1, 2, 3], [4]], pad_id=9)
    assert tokens.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert attention.tolist() == [[True] * 3, [False, False, True]]


def test_completion_texts_are_cut_at_the_first_end_token():
    tokenizer = task_tokenizer(("a", "b"))
    end = tokenizer.eos_token_id
    assert completion_texts(tokenizer, [[0, 1, end, 0], [end, 0, 0, 0], [0, 0, 1, 1]], end) == ["ab", "", "aabb"]


def test_examples_prompts_puts_groups_next_to_each_other_keyed_by_example():
    tokenizer = task_tokenizer(("a", "b"))
    items = [Example(prompt=text, solution="", columns={"n": len(text)}) for text in ("a", "bb", "ab")]
    examples = Examples.of(items, tokenizer, tokenizer.eos_token_id, max_prompt_tokens=2)
    prompts = examples.prompts([2, 0], group_size=2)
    assert prompts.prompt_N.tolist() == [2, 2, 0, 0]
    assert prompts.sample_N.tolist() == [0, 1, 0, 1]
    assert torch.equal(prompts.tokens_NP[0], torch.tensor([0, 1]))
    assert examples.columns([2, 0], 2) == {"n": [2, 2, 1, 1]}


def test_examples_numbered_gives_each_occurrence_a_number_of_its_own():
    tokenizer = task_tokenizer(("a", "b"))
    items = [Example(prompt=text, solution="", columns={}) for text in ("a", "b", "ab")]
    examples = Examples.of(items, tokenizer, tokenizer.eos_token_id, max_prompt_tokens=2)
    assert examples.numbered([2, 0, 1]) == [2, 0, 1]
    numbers = examples.numbered([2, 0, 2, 2, 0])
    assert numbers == [2, 0, 5, 8, 3]
    assert examples.numbered(numbers) == numbers
    assert examples.indices(numbers) == [2, 0, 2, 2, 0]
    prompts = examples.prompts([2, 2], group_size=2)
    assert prompts.prompt_N.tolist() == [2, 2, 5, 5]
    assert torch.equal(prompts.tokens_NP[:2], prompts.tokens_NP[2:])
    rollout = Rollout.fake(prompts.tokens_NP, prompt_length=1, group_size=2, mask_id=9, prompt_N=prompts.prompt_N)
    assert rollout_texts(tokenizer, rollout, examples) == ["b"] * 4


def test_examples_of_refuses_prompts_that_are_too_long():
    tokenizer = task_tokenizer(("a",))
    with pytest.raises(UserError, match="3 tokens, the model leaves room for 2"):
        Examples.of(
            [Example(prompt="aaa", solution="", columns={})], tokenizer, tokenizer.eos_token_id, max_prompt_tokens=2
        )


@pytest.mark.parametrize("room", [0, -1024])
def test_examples_of_says_that_completions_alone_are_longer_than_the_model_takes(room):
    tokenizer = task_tokenizer(("a",))
    mend = f"max_new_tokens alone is all that the model takes, or more: .* by {3 - room}$"
    with pytest.raises(UserError, match=mend):
        Examples.of(
            [Example(prompt="aaa", solution="", columns={})], tokenizer, tokenizer.eos_token_id, max_prompt_tokens=room
        )


def test_examples_prompts_have_one_of_a_few_widths():
    tokenizer = task_tokenizer(("1",))
    lengths = [3, 15, 16, 17, 40, 41]
    items = [Example(prompt="1" * length, solution="1", columns={}) for length in lengths]
    examples = Examples.of(items, tokenizer, tokenizer.eos_token_id, max_prompt_tokens=50)
    widths = [examples.prompts([index], 2).tokens_NP.shape[1] for index in range(len(items))]
    assert widths == [16, 16, 16, 32, 41, 41]  # multiples of 16, or the longest of all
    prompts = examples.prompts([0, 3], 1)
    assert prompts.attention_NP.sum(1).tolist() == [3, 17]
    same = Examples.of(items[:1], tokenizer, tokenizer.eos_token_id, max_prompt_tokens=50)
    assert bool(same.prompts([0], 2).attention_NP.all())


@pytest.mark.parametrize(("add_bos", "add_eos"), [(False, False), (True, False), (True, True), (False, True)])
def test_leading_ids_are_those_of_the_post_processor(add_bos, add_eos):
    tokenizer = byte_tokenizer(add_bos=add_bos, add_eos=add_eos)
    assert leading_ids(tokenizer) == [tokenizer.bos_token_id] * add_bos
    expected = tokenizer("hi")["input_ids"]
    assert encode_prompts(tokenizer, ["hi"], templated=False) == [expected[:-1] if add_eos else expected]
    assert encode_prompts(tokenizer, ["hi"], templated=True) == encode(tokenizer, ["hi"])


@pytest.mark.parametrize(
    ("template", "specials", "text"),
    [
        (None, FAMILIES["llada"][1], "hi"),
        (None, FAMILIES["llada"][1], "<|startoftext|>hi"),
        (FAMILIES["llada"][0], FAMILIES["llada"][1], "hi"),  # the template writes it
        (CHATML, FAMILIES["dream"][1], "hi"),  # the template writes none
    ],
)
def test_examples_of_begin_with_one_bos(template, specials, text):
    tokenizer = byte_tokenizer(template, specials, add_bos=True)
    item = Example(prompt=text, solution="", columns={}, ranked=("a", "b"))
    for chat in (ChatSettings(), ChatSettings(template="never"), ChatSettings(prefill="x")):
        examples = Examples.of([item], tokenizer, tokenizer.eos_token_id, max_prompt_tokens=200, chat=chat)
        (ids,) = examples.prompt_ids
        wanted = 0 if template == CHATML and chat.template == "auto" else 1
        assert ids.count(tokenizer.bos_token_id) == wanted
        assert (ids[0] == tokenizer.bos_token_id) == bool(wanted)
        assert all(tokenizer.bos_token_id not in row for row in examples.ranked_ids[0])


def test_completion_texts_and_token_names_show_ids_that_the_tokenizer_does_not_know():
    tokenizer = byte_tokenizer()
    a, b = encode(tokenizer, ["ab"])[0]
    unknown = len(tokenizer) + 7
    assert completion_texts(tokenizer, [[a, unknown, b], [unknown, unknown], [a], []], tokenizer.eos_token_id) == [
        f"a<id {unknown}>b",
        f"<id {unknown}><id {unknown}>",
        "a",
        "",
    ]
    assert token_names(tokenizer, [a, unknown]) == ["a", f"<id {unknown}>"]


def test_token_texts_of_a_byte_level_tokenizer_are_readable():
    tokenizer = byte_tokenizer()
    (ids,) = encode(tokenizer, ["a b\né"])
    assert token_texts(tokenizer, ids) == ["a", " ", "b", "\n", "�", "�"]
    unknown = len(tokenizer) + 7
    assert token_texts(tokenizer, [tokenizer.eos_token_id, unknown]) == ["<|endoftext|>", f"<id {unknown}>"]


def test_token_texts_keep_the_space_before_a_word_of_a_sentencepiece_tokenizer():
    made = Tokenizer(models.WordLevel({"▁the": 0, "▁answer": 1, "s": 2, "<unk>": 3}, unk_token="<unk>"))  # noqa: S106
    made.decoder = decoders.Metaspace()
    assert token_texts(PreTrainedTokenizerFast(tokenizer_object=made), [0, 1, 2]) == [" the", " answer", "s"]
