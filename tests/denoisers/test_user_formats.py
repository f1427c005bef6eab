"""A checkpoint format of the user's own, in one file."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import REFERENCE
from unmask.denoisers.loading import load_denoiser, save_denoiser
from unmask.errors import UserError
from unmask.plan.dry_run import Pass, peak_bytes
from unmask.plan.networks import blank_denoiser, read_shape
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


@pytest.fixture
def toy(tmp_path):
    """The directory of a checkpoint in a format of its own, that of LLaDA's with the same weights, and the format."""
    source = load_denoiser(str(REFERENCE / "models" / "llada-tiny"))
    config = source.model.config
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    settings = {key: getattr(config, key) for key in (*keys, "max_position_embeddings", "rms_norm_eps")}
    settings |= {"kind": "toy", "theta": config.rope_parameters["rope_theta"], "mask_token_id": 255, "eos_token_id": 1}
    tensors = {re.sub(r"^model[.]", "toy.", name): weight for name, weight in source.model.state_dict().items()}
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(settings))
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (tmp_path / "toy_format.py").write_text(TOY)
    return directory, source, f"{tmp_path / 'toy_format.py'}:toy"


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
