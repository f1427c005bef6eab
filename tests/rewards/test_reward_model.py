"""A reward model scores as transformers does, whatever the batch; what is no reward model is refused."""

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from unmask.data.tokenization import task_tokenizer
from unmask.errors import UserError
from unmask.rewards import load_functions
from unmask.settings.recipe import RewardSettings
from unmask.tasks import Sudoku

LETTERS = [*"abcdefgh:"]
TEMPLATE = "{% for message in messages %}{{ message.role[0] }}:{{ message.content }}{% endfor %}"
PROMPTS, COMPLETIONS = ["abc", "b", "abcdefg"], ["hg", "abcdefgh", "a"]
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def saved(directory: Path, kind: str = "llama", template: str | None = None, labels: int = 1) -> str:
    """A classifier with random weights, large enough that texts differ, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = task_tokenizer(LETTERS)
    tokenizer.chat_template = template
    options = SMALL | {"vocab_size": len(tokenizer), "num_labels": labels, "max_position_embeddings": 32}
    if kind == "bert":
        network = BertForSequenceClassification(BertConfig(**options, initializer_range=1.0))
    else:
        network = LlamaForSequenceClassification(LlamaConfig(**options, initializer_range=1.0))
    network.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def loaded(path: str, batch: int = 2):
    (function,) = load_functions(RewardSettings(funcs=f"reward_model:{path}", batch=batch), Sudoku(), "cpu")
    assert (function.name, function.cached) == ("reward_model", False)
    return function.call


@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_reward_model_scores_are_the_networks_for_each_text_alone(tmp_path, kind, template):
    path = saved(tmp_path, kind, template)
    network = (BertForSequenceClassification if kind == "bert" else LlamaForSequenceClassification).from_pretrained(
        path
    )
    tokenizer = task_tokenizer(LETTERS)
    expected = []
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        text = f"u:{prompt}a:{completion}" if template else prompt + completion
        ids = torch.tensor([[tokenizer.convert_tokens_to_ids(letter) for letter in text]])
        with torch.no_grad():
            expected.append(network.eval()(input_ids=ids).logits.item())
    assert max(expected) - min(expected) > 0.1
    for batch in (1, 2, 16):
        scores = loaded(path, batch)(prompts=PROMPTS, completions=COMPLETIONS, puzzle=PROMPTS)
        assert scores == pytest.approx(expected, abs=1e-5)


def test_reward_model_refuses_a_text_that_is_too_long(tmp_path):
    model = loaded(saved(tmp_path))
    assert len(model(prompts=["a" * 16], completions=["b" * 16])) == 1
    with pytest.raises(UserError, match=r"takes 32 tokens.*33"):
        model(prompts=["a" * 16], completions=["b" * 17])


def test_reward_model_names_its_chat_template_where_that_refuses(tmp_path):
    score = loaded(saved(tmp_path, template="{{ raise_exception('no users') }}"))
    with pytest.raises(UserError, match=rf"refuses messages of user, assistant \(no users\): mend .*'{tmp_path}'"):
        score(prompts=["ab"], completions=["c"], puzzle=["ab"])


def test_load_reward_model_refuses_several_classes(tmp_path):
    with pytest.raises(UserError, match="has 2 outputs"):
        loaded(saved(tmp_path, labels=2))


def test_load_reward_model_refuses_a_language_model_without_a_head(tmp_path):
    path = saved(tmp_path)
    LlamaForSequenceClassification.from_pretrained(path).model.save_pretrained(path)
    with pytest.raises(UserError, match=r"lacks score\.weight"):
        loaded(path)


def test_load_reward_model_does_not_open_pickled_weights(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled"):
        loaded(path)


@pytest.mark.parametrize("kind", ["t5000", "clip_text_model"])
def test_load_reward_model_refuses_architectures_without_a_classifier(tmp_path, kind):
    path = saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": kind}
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=kind if kind != "t5000" else "config.json"):
        loaded(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"])
def test_load_reward_model_refuses_a_damaged_file_by_name(tmp_path, name, content):
    path = saved(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as refusal:
        loaded(path)
    assert "\n" not in str(refusal.value)


def test_load_reward_model_refuses_weights_of_other_shapes(tmp_path):
    path = saved(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"intermediate_size": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"shapes otherwise .*mlp"):
        loaded(path)
