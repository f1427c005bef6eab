"""Prompts are worded by the tokenizer's chat template where it has one, and by nothing else where it has none."""

import json
import string

import pytest

from helpers.chat_tokenizers import (
    ENDLESS,
    ENDLESS_HEADED,
    FAMILIES,
    PLAIN,
    ROLES,
    byte_tokenizer,
    family_tokenizer,
)
from unmask.cli.main import main
from unmask.data.chat import ChatSettings, render_completion, render_prompt
from unmask.data.example import Example
from unmask.data.examples import Examples, encode_completions, guess_texts, rollout_texts
from unmask.data.tokenization import completion_texts, encode, task_tokenizer
from unmask.denoisers.loading import load_tokenizer
from unmask.errors import UserError
from unmask.sampling.records import EveryStep
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks import TASKS
from unmask.training.build import build_trainer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = ("<system>", "<user>", "<assistant>", "<end>", " ", *string.ascii_letters, *string.punctuation)
EMBEDDED = ("sudoku", "countdown", "arithmetic")


def tokenizer(template=TEMPLATE):
    made = task_tokenizer(WORDS)
    made.chat_template = template
    return made


def turn(role, content):
    return {"role": role, "content": content}


def example(prompt="hi", *messages, **fields):
    return Example(prompt=prompt, solution="", columns={}, messages=messages, **fields)


@pytest.mark.parametrize(
    ("item", "chat", "text", "prefill"),
    [
        (example(), {}, "<user>hi<end><assistant>", ""),
        (example(), {"template": "never"}, "hi", ""),
        (example(), {"system": "be"}, "<system>be<end><user>hi<end><assistant>", ""),
        (example(), {"prefill": "<r>"}, "<user>hi<end><assistant><r>", "<r>"),
        (example(), {"template": "never", "prefill": "<r>"}, "hi<r>", "<r>"),
        (example("x", turn("user", "hi")), {"template": "never"}, "hi", ""),
        (
            example("x", turn("user", "a"), turn("assistant", "b"), turn("user", "c")),
            {"system": ""},
            "<system><end><user>a<end><assistant>b<end><user>c<end><assistant>",
            "",
        ),
        (example("x", turn("user", "a"), turn("assistant", "b")), {"prefill": "c"}, "<user>a<end><assistant>bc", "bc"),
    ],
)
def test_render_prompt_words_prompts_by_settings(item, chat, text, prefill):
    found = render_prompt(tokenizer(), item, ChatSettings(**chat))
    assert (found.text, found.prefill) == (text, prefill)
    without = render_prompt(tokenizer(None), example(), ChatSettings(prefill="<r>"))
    assert (without.text, without.prefill) == ("hi<r>", "<r>")


@pytest.mark.parametrize("name", EMBEDDED)
def test_render_prompt_leaves_prompts_of_embedded_models(name):
    made = load_tokenizer(f"embedded:{name}")
    items = TASKS[name]().examples("test", 5, seed=1)
    examples = Examples.of(items, made, made.eos_token_id, max_prompt_tokens=64)
    assert examples.prompt_ids == encode(made, [item.prompt for item in items])
    solutions = [item.solution for item in items]
    assert encode_completions(made, items, solutions) == encode(made, solutions)
    assert set(examples.prefills) == {""}


@pytest.mark.parametrize(
    ("template", "item", "chat", "message"),
    [
        (None, example(), {"system": "be"}, "2 messages and the tokenizer has no chat template"),
        (TEMPLATE, example(), {"system": "be", "template": "never"}, "chat.template is never"),
        (None, example("x", turn("user", "a"), turn("assistant", "b"), turn("user", "c")), {}, "3 messages"),
        (TEMPLATE, example("x", turn("system", "a"), turn("user", "b")), {"system": "be"}, "unset chat.system"),
        ("{{ raise_exception('no system') }}", example(), {"system": "be"}, r"system, user \(no system\)"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", example(), {}, "chat template refuses"),
        ("{% for", example(), {}, "chat template refuses"),
    ],
)
def test_render_prompt_refuses_what_it_cannot_word(template, item, chat, message):
    with pytest.raises(UserError, match=message):
        render_prompt(tokenizer(template), item, ChatSettings(**chat))


def test_chat_settings_refuse_an_unknown_template(capsys):
    assert main(["train", "--chat.template", "always"]) == 2
    assert "chat.template 'always' is unknown: give one of auto, never" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chat", "completion", "rest"),
    [({}, "yes", "yes<end>"), ({"prefill": "<r>"}, "<r>yes", "yes<end>"), ({"prefill": "<r>"}, "yes", "yes<end>")],
)
def test_render_completion_ends_the_turn(chat, completion, rest):
    settings = ChatSettings(**chat)
    assert render_completion(tokenizer(), example(), completion, settings) == rest
    assert render_completion(tokenizer(None), example(), completion, settings) == "yes"
    rows = encode_completions(tokenizer(), [example()], [completion], settings)
    assert rows == encode(tokenizer(), [rest])


def test_render_completion_refuses_templates_that_reword_answered_prompts():
    thinking = TEMPLATE.replace("<assistant>{% endif", "<assistant><think>{% endif")
    with pytest.raises(UserError, match="changes prompt 'hi'"):
        render_completion(tokenizer(thinking), example(), "yes", ChatSettings())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("completion", ["4", "4 ", " 4", "4\n\n5"])
def test_render_completion_is_the_completion_and_the_end_of_the_turn(family, completion):
    mark = FAMILIES[family][2]
    made = family_tokenizer(family)
    target = render_completion(made, example(), completion, ChatSettings())
    assert target in (completion + mark, completion.strip() + mark)
    assert completion_texts(made, encode(made, [target]), made.eos_token_id)[0].strip() == completion.strip()
    prefilled = render_completion(made, example(), "r4", ChatSettings(prefill="r"))
    assert prefilled == "4" + mark


@pytest.mark.parametrize(
    ("template", "target"),
    [
        (PLAIN, "4"),  # white space alone: padding ends it
        (ENDLESS, "4"),
        (ENDLESS_HEADED, "behind a completion"),
        (ROLES.replace("<|role_end|>", " That is all."), "behind a completion"),
        (ROLES.replace("m['content']", "m['content'] | upper"), "changes prompt 'hi' or its completion"),
        (
            ROLES.replace("m['content']", "('<think></think>' if m['role'] == 'assistant' else '') + m['content']"),
            "changes",
        ),
    ],
)
def test_render_completion_refuses_more_behind_it_than_the_end_of_the_turn(template, target):
    made = byte_tokenizer(template, FAMILIES["llada2"][1])
    if target == "4":
        assert render_completion(made, example(), "4", ChatSettings()) == "4"
        return
    with pytest.raises(UserError, match=target) as error:
        render_completion(made, example(), "four", ChatSettings())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("family", "chosen", "rejected"), [("llada", "4", "4 "), ("llada", "\n4", "4")])
def test_examples_of_refuses_pairs_with_the_same_tokens(family, chosen, rejected):
    made = family_tokenizer(family)
    item = example(ranked=(chosen, rejected), place="pairs.jsonl, line 3")
    with pytest.raises(UserError, match=r"^pairs.jsonl, line 3: completions .* have the same tokens; remove the row"):
        Examples.of([item], made, made.eos_token_id, max_prompt_tokens=200)
    Examples.of([item], made, made.eos_token_id, max_prompt_tokens=200, chat=ChatSettings(template="never"))


@pytest.mark.parametrize("where", ["chat_template.jinja", "tokenizer_config.json"])
def test_chat_template_survives_a_checkpoint_round_trip(tmp_path, where):
    first, second = tmp_path / "first", tmp_path / "second"
    tokenizer(TEMPLATE if where.endswith("jinja") else None).save_pretrained(first)
    (first / "config.json").write_text("{}")
    if where == "tokenizer_config.json":
        settings = json.loads((first / where).read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}
        (first / where).write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    assert (first / "chat_template.jinja").exists() == where.endswith("jinja")
    loaded = load_tokenizer(str(first))
    loaded.save_pretrained(second)
    (second / "config.json").write_text("{}")
    for made in (loaded, load_tokenizer(str(second))):
        assert render_prompt(made, example(), ChatSettings()).text == "<user>hi<end><assistant>"
        assert encode(made, ["<user>hi"]) == encode(tokenizer(), ["<user>hi"])


def test_examples_texts_begin_with_the_prefill(monkeypatch):
    read = []
    task = TASKS["sudoku"]
    original = task.rewards, task.metrics
    for name, function in zip(("rewards", "metrics"), original, strict=True):

        def spy(self, prompts, completions, function=function, **columns):
            read.append(completions)
            return function(self, prompts, completions, **columns)

        monkeypatch.setattr(task, name, spy)
    document = {
        "chat": {"prefill": "12"},
        "method": {"name": "mdpo"},  # scores guesses too
        "rollout": {"prompts": 2, "num_generations": 2, "max_new_tokens": 8},
        "train": {"max_steps": 1, "examples": 8, "threads": 1},
        "evaluation": {"examples": 4, "greedy_steps": 8, "batch": 4},
    }
    trainer = build_trainer(build(Recipe, document))
    read.clear()  # all functions are asked once before the run
    _, sample = trainer.step(0)
    trainer.evaluation(2)
    assert len(read) >= 1 + 3 * 2  # a step, and three samplers: metrics call rewards
    assert all(text.startswith("12") and len(text) == 8 + 2 for texts in read for text in texts)
    assert all(text["text"].startswith("12") for text in sample["completions"])
    assert sample["prompt"] + "12" == trainer.tokenizer.decode(
        trainer.source.examples.prompt_ids[
            [item.prompt for item in trainer.source.examples.items].index(sample["prompt"])
        ]
    )


def test_examples_texts_have_the_prefill_of_their_own_example():
    trainer = build_trainer(build(Recipe, {"train": {"examples": 4}, "evaluation": {"examples": 2}}))
    made = trainer.tokenizer
    items = [
        example("x", turn("user", item.prompt[:8]), turn("assistant", start))
        for item, start in zip(trainer.source.examples.items, "1234", strict=True)
    ]
    examples = Examples.of(items, made, trainer.source.examples.eos_id, max_prompt_tokens=16)
    prompts = examples.prompts([2, 0], 2)
    rollout = trainer.sampler(trainer.objective.denoiser.eval(), prompts, trainer.uniforms, EveryStep(), group_size=2)
    assert [text[0] for text in rollout_texts(made, rollout, examples)] == ["3", "3", "1", "1"]
    assert [{text[0] for text in texts} for texts in guess_texts(made, rollout, examples)] == [
        {"3"},
        {"3"},
        {"1"},
        {"1"},
    ]
