"""A model that does not fit, or cannot be sharded, is told as what it is before it takes the machine."""

import pytest
import torch
from safetensors import SafetensorError
from torch.distributed.device_mesh import DeviceMesh
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from unmask.cli.main import main
from unmask.data.tokenization import task_tokenizer
from unmask.denoisers.load_errors import config_errors, memory_errors
from unmask.denoisers.loading import load_denoiser
from unmask.errors import UserError


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
        SafetensorError("Error while serializing: I/O error: Cannot allocate memory (os error 12)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_is_out_while_a_model_loads_is_no_fault_of_its_config(error):
    def load():
        with memory_errors("model 'x'"), config_errors("x"):
            raise error

    with pytest.raises(UserError, match=r"^model 'x' does not fit the memory \(.*unmask plan.*train\.shard.*lora_rank"):
        load()


def test_other_errors_of_a_config_are_said_of_it():
    def load():
        with memory_errors("model 'x'"), config_errors("x"):
            raise ValueError("hidden_size 7")

    with pytest.raises(UserError, match=r"config\.json that cannot be used \(ValueError: hidden_size 7\)"):
        load()


@pytest.fixture
def bert(tmp_path):
    """A masked language model, which has no list of decoder layers."""
    tokenizer = task_tokenizer("12")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(tokenizer), mask_token_id=tokenizer.mask_token_id, **sizes)
    config.eos_token_id = tokenizer.eos_token_id
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_network_without_layers_is_not_sharded_and_nothing_is_loaded(bert, monkeypatch, tmp_path, capsys):
    assert load_denoiser(bert).model.config.model_type == "bert"
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *_, **__: pytest.fail("it is loaded"))
    line = "train.shard shards decoder layers, and BertForMaskedLM has none: set it to 0"
    with pytest.raises(UserError, match=line):
        load_denoiser(bert, mesh=object.__new__(DeviceMesh))


@pytest.mark.parametrize("flag", [("--train.lora-rank", "4"), ("--train.lora-rank", "4", "--train.four-bit", "true")])
def test_adapters_and_four_bits_are_refused_with_shards_by_name(flag, tmp_path, capsys):
    assert main(["train", "--train.shard", "2", *flag, "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.shard 2 shards what is trained, and with train.lora_rank that is small: set it to 0" in line
    assert not (tmp_path / "run").exists()
