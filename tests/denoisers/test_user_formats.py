"""A checkpoint format of the user's own, in one file."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import REFERENCE
from helpers.long import long_unless
from unmask.cli.main import main
from unmask.denoisers.loading import load_denoiser, load_tokenizer, save_denoiser
from unmask.errors import UserError
from unmask.plan.dry_run import Pass, peak_bytes
from unmask.plan.networks import blank_denoiser, read_shape
from unmask.settings.commands import PretrainRecipe
from unmask.settings.recipe import TrainSettings


class NoTokenizer:
    def save_pretrained(self, directory):
        pass


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


TOY = r"""
from transformers import LlamaConfig, LlamaForCausalLM

from unmask.denoisers.formats.base import CheckpointFormat

SAME = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def _config(published):
    rope = {"rope_type": "default", "rope_theta": published["theta"]}
    settings = {key: published[key] for key in (*SAME, "max_position_embeddings", "rms_norm_eps")}
    return LlamaConfig(**settings, rope_parameters=rope, bos_token_id=None, is_causal=False, use_cache=False)


def toy():
    return CheckpointFormat(
        name="Toy",
        network=LlamaForCausalLM,
        config=_config,
        renaming={r"^toy\.": "model."},
        shift=True,
        block_length=4,
    )


def nothing():
    return None
"""


def write_toy(directory, source):
    """A checkpoint in a format of its own, with the weights of `source`, and the name of its format."""
    config = source.model.config
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    settings = {key: getattr(config, key) for key in (*keys, "max_position_embeddings", "rms_norm_eps")}
    tokens = {"mask_token_id": source.mask_id, "eos_token_id": source.eos_id}
    tensors = {re.sub(r"^model[.]", "toy.", name): weight for name, weight in source.model.state_dict().items()}
    directory.mkdir()
    theta = config.rope_parameters["rope_theta"]
    (directory / "config.json").write_text(json.dumps(settings | tokens | {"kind": "toy", "theta": theta}))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory.parent / "toy_format.py").write_text(TOY)
    return f"{directory.parent / 'toy_format.py'}:toy"


@pytest.fixture
def toy(tmp_path):
    """The directory of a checkpoint in a format of its own, that of LLaDA's with the same weights, and the format."""
    source = load_denoiser(str(REFERENCE / "models" / "llada-tiny"))
    return tmp_path / "checkpoint", source, write_toy(tmp_path / "checkpoint", source)


def test_load_denoiser_reads_a_format_of_the_users(toy, tmp_path):
    directory, source, model_format = toy
    denoiser = load_denoiser(str(directory), model_format=model_format).eval()
    assert denoiser.shift
    assert denoiser.block_length == 4
    assert denoiser.queries_last_layer
    assert_same_tensors(denoiser.model.state_dict(), source.model.state_dict())
    save_denoiser(denoiser, NoTokenizer(), tmp_path / "written")
    assert_same_tensors(load_file(tmp_path / "written/model.safetensors"), load_file(directory / "model.safetensors"))
    assert json.loads((tmp_path / "written/config.json").read_text())["kind"] == "toy"


def test_read_shape_reads_a_format_of_the_users(toy):
    directory, source, model_format = toy
    blank = blank_denoiser(read_shape(str(directory), model_format), TrainSettings())
    theirs = {name: weight.shape for name, weight in source.named_parameters()}
    assert {name: weight.shape for name, weight in blank.named_parameters()} == theirs
    assert blank.shift
    work = Pass(forwards=1, length=8, queries=4, scored=4)
    assert peak_bytes(str(directory), TrainSettings(), work, model_format) > 0


def test_load_denoiser_refuses_what_is_no_format(toy):
    directory, _, model_format = toy
    with pytest.raises(UserError, match="attends causally"):
        load_denoiser(str(directory))
    with pytest.raises(UserError, match="returns a NoneType: return an unmask"):
        load_denoiser(str(directory), model_format=model_format.replace(":toy", ":nothing"))
    with pytest.raises(UserError, match="model_format 'toy' is unknown: give FILE"):
        load_denoiser(str(directory), model_format="toy")
    with pytest.raises(UserError, match="has no model_format 'tox': perhaps you meant 'toy'"):
        load_denoiser(str(directory), model_format=model_format.replace(":toy", ":tox"))


SMALL_RUN = (
    *("--train.max-steps", "1", "--train.examples", "8", "--train.threads", "1", "--rollout.prompts", "2"),
    *("--rollout.num-generations", "4", "--rollout.block-length", "4", "--evaluation.examples", "4"),
)


@pytest.mark.parametrize("lora_rank", long_unless({2}, [0, 2]))
def test_model_format_is_read_by_every_command(tmp_path, capsys, lora_rank):
    model_format = write_toy(tmp_path / "checkpoint", load_denoiser("embedded:sudoku"))
    load_tokenizer("embedded:sudoku").save_pretrained(tmp_path / "checkpoint")
    model = ("--model", str(tmp_path / "checkpoint"), "--model-format", model_format)
    adapters = ("--train.lora-rank", str(lora_rank))
    method = ("--method", "diffu-grpo", "--method.beta", "0.04")  # with a reference
    run = tmp_path / "run"
    assert main(["train", *model, *SMALL_RUN, *adapters, *method, "--output", str(run)]) == 0
    trained = run / "checkpoints" / "step_000001"
    assert set(load_file(trained / "model.safetensors")) == set(load_file(tmp_path / "checkpoint/model.safetensors"))
    assert load_denoiser(str(trained), model_format=model_format).block_length == 4
    (run / "summary.json").unlink()
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "summary.json").exists()
    model = ("--model", str(trained), "--model-format", model_format)
    blocks = ("--block-length", "4")
    assert main(["evaluate", *model, *blocks, "--examples", "4", "--steps", "4", "--threads", "1"]) == 0
    assert main(["sample", *model, *blocks]) == 0
    assert main(["plan", *model, *adapters, *SMALL_RUN]) == 0
    flags = ("--steps", "1", "--batch", "2", "--examples", "4", "--threads", "1")
    assert main(["pretrain", *model, *flags, "--output", str(tmp_path / "tuned")]) == 0
    assert load_denoiser(str(tmp_path / "tuned"), model_format=model_format).shift
    capsys.readouterr()
    assert main(["evaluate", "--model", str(trained)]) == 2
    assert "attends causally" in capsys.readouterr().err


def test_model_format_without_a_model_is_refused():
    with pytest.raises(UserError, match="model_format reads a checkpoint: give model"):
        PretrainRecipe(model_format="mine.py:mine")
