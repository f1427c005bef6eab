"""LLaDA's checkpoint format gives the authors' logits, padded or not, and is written back as published."""

import json

import torch
from safetensors.torch import load_file

from conftest import REFERENCE
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser, save_denoiser

DIRECTORY = REFERENCE / "models" / "llada-tiny"


def logits(denoiser, tokens, attention):
    asked = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        return denoiser(tokens, attention.bool(), asked, AllLogits())[0]


def test_llada_logits_equal_the_published_model(llada_tiny):
    stored = load_file(DIRECTORY / "logits.safetensors")
    tokens = stored["input_ids"]
    torch.testing.assert_close(logits(llada_tiny, tokens, torch.ones_like(tokens)), stored["logits"], atol=1e-4, rtol=0)


def test_llada_left_padded_logits_equal_the_published_model(llada_tiny):
    stored = load_file(DIRECTORY / "logits.safetensors")
    attention = stored["padded_attention_mask"]
    ours = logits(llada_tiny, stored["padded_input_ids"], attention) * attention[..., None]
    torch.testing.assert_close(ours, stored["padded_logits"], atol=2e-4, rtol=0)


def test_llada_round_trip_keeps_the_published_format(llada_tiny, tmp_path):
    class NoTokenizer:
        def save_pretrained(self, directory):
            pass

    save_denoiser(llada_tiny, NoTokenizer(), tmp_path, source=DIRECTORY)
    ours, theirs = load_file(tmp_path / "model.safetensors"), load_file(DIRECTORY / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads((DIRECTORY / "config.json").read_text())
    load_denoiser(str(tmp_path))
