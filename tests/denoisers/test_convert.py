"""`unmask convert`: an autoregressive checkpoint attends both ways, keeps its weights and its shift, and trains."""

import json

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from unmask.cli.main import main
from unmask.data.tokenization import task_tokenizer
from unmask.denoisers.convert import convert
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.loading import load_denoiser, load_tokenizer, save_denoiser
from unmask.errors import UserError
from unmask.tasks import Sudoku

VOCABULARY = len(Sudoku().vocabulary) + 1  # no mask token


def autoregressive(directory, vocabulary=VOCABULARY, tied=False):
    """A causal checkpoint with a tokenizer that knows no mask."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    network = LlamaForCausalLM(config)
    network.save_pretrained(directory)
    tokenizer = task_tokenizer(Sudoku().vocabulary)
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"]["vocab"].pop("<|mask|>")
    document["added_tokens"] = [token for token in document["added_tokens"] if token["content"] != "<|mask|>"]
    (directory / "tokenizer.json").write_text(json.dumps(document))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
    )
    return network


def test_convert_adds_a_mask_token_and_keeps_the_rest(tmp_path):
    source = autoregressive(tmp_path / "causal")
    denoiser, tokenizer = convert(str(tmp_path / "causal"))
    assert (denoiser.mask_id, denoiser.shift) == (VOCABULARY, True)
    assert tokenizer.mask_token_id == VOCABULARY
    for ours, theirs in (
        (denoiser.model.get_input_embeddings(), source.get_input_embeddings()),
        (denoiser.model.get_output_embeddings(), source.get_output_embeddings()),
    ):
        assert torch.equal(ours.weight[:VOCABULARY], theirs.weight)
        torch.testing.assert_close(ours.weight[VOCABULARY], theirs.weight.mean(0))
    kept = denoiser.model.state_dict()
    assert all(torch.equal(kept[name], weight) for name, weight in source.model.layers.named_parameters("model.layers"))


@pytest.mark.parametrize("tied", [False, True])
def test_convert_uses_a_reserved_row_for_the_mask_token(tmp_path, tied):
    autoregressive(tmp_path / "causal", vocabulary=VOCABULARY + 3, tied=tied)
    denoiser, _ = convert(str(tmp_path / "causal"))
    assert denoiser.mask_id == VOCABULARY
    assert denoiser.model.config.vocab_size == VOCABULARY + 3


def test_convert_keeps_the_logits_of_one_token(tmp_path):
    """Where nothing stands to the right, attending both ways is attending to the left."""
    source = autoregressive(tmp_path).eval()
    denoiser, _ = convert(str(tmp_path))
    tokens = torch.tensor([[3]])
    with torch.no_grad():
        reducer = TargetLogProb(torch.arange(VOCABULARY)[None])
        (ours,) = denoiser(tokens, torch.ones(1, 1).bool(), torch.tensor([[0]]), reducer)
        theirs = source(tokens).logits[0, 0].log_softmax(-1)
    torch.testing.assert_close(ours[0, 0].log_softmax(-1), theirs)


def test_convert_command_writes_a_model_that_loads_and_trains(tmp_path, capsys):
    autoregressive(tmp_path / "causal")
    output = tmp_path / "diffusion"
    assert main(["convert", "--model", str(tmp_path / "causal"), "--output", str(output)]) == 0
    assert "<|mask|> (id 6)" in capsys.readouterr().out
    denoiser = load_denoiser(str(output))
    assert (denoiser.mask_id, denoiser.shift, denoiser.model.config.is_causal) == (VOCABULARY, True, False)
    assert load_tokenizer(str(output)).mask_token_id == VOCABULARY
    flags = ("--max-steps", "3", "--batch", "4", "--examples", "16", "--validation-examples", "4", "--threads", "1")
    assert main(["pretrain", "--model", str(output), *flags, "--output", str(tmp_path / "tuned")]) == 0
    assert "validation loss" in capsys.readouterr().out
    tuned = load_denoiser(str(tmp_path / "tuned"))
    assert tuned.shift
    assert main(["convert", "--model", str(tmp_path / "tuned"), "--output", str(tmp_path / "again")]) == 2
    assert "attends both ways already" in capsys.readouterr().err
    assert main(["convert", "--model", str(tmp_path / "causal"), "--output", str(output)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_convert_reuses_a_token_of_the_tokenizer(tmp_path):
    autoregressive(tmp_path)
    denoiser, tokenizer = convert(str(tmp_path), mask_token="1")  # noqa: S106
    assert denoiser.mask_id == tokenizer.mask_token_id == tokenizer.get_vocab()["1"]
    with pytest.raises(UserError, match="no token '<mask>'"):
        convert(str(tmp_path), mask_token="<mask>")  # noqa: S106


def test_convert_refuses_an_architecture_that_stays_causal(tmp_path):
    autoregressive(tmp_path)
    config = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1)
    MambaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mamba stays causal"):
        convert(str(tmp_path))


def test_load_denoiser_reads_a_masked_language_model(tmp_path):
    torch.manual_seed(0)
    tokenizer = task_tokenizer(Sudoku().vocabulary)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        mask_token_id=tokenizer.mask_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    network = BertForMaskedLM(config).eval()
    network.save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    denoiser = load_denoiser(str(tmp_path / "bert")).eval()
    tokens = torch.tensor([[0, 1, 6, 3, 6]])
    attention, asked = torch.ones_like(tokens).bool(), torch.arange(5)[None]
    targets = torch.arange(len(tokenizer)).expand(5, -1)
    with torch.no_grad():
        (ours,) = denoiser(tokens, attention, asked, TargetLogProb(targets))
        theirs = network(tokens).logits.log_softmax(-1)
    torch.testing.assert_close(ours, theirs)
    save_denoiser(denoiser, tokenizer, tmp_path / "again")
    assert "BertForMaskedLM" in json.loads((tmp_path / "again" / "config.json").read_text())["architectures"]
