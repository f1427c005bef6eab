"""A base in 4 bits: refused where it cannot be, and what is saved of it is the policy that was trained."""

import json

import pytest
import torch
from safetensors.torch import load_file

from conftest import REFERENCE
from unmask.cli.main import main
from unmask.denoisers import four_bit
from unmask.denoisers.adapters import AdaptersOff, add_adapters
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser, load_tokenizer, resolve, save_denoiser
from unmask.distributed import World
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.training.build import build_trainer

TOKENS = torch.tensor([[1, 2, 3, 4, 5, 6]])


def logits(denoiser):
    asked = torch.arange(TOKENS.shape[1])[None]
    return denoiser(TOKENS, torch.ones_like(TOKENS).bool(), asked, AllLogits())[0].detach()


@pytest.mark.parametrize(
    ("command", "mend"),
    [
        (("train", "--train.four-bit", "true"), "set train.lora_rank"),
        (("pretrain", "--model", "embedded:sudoku", "--four-bit", "true"), "set lora_rank"),
    ],
)
def test_four_bit_without_adapters_is_refused(command, mend, tmp_path, capsys):
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert mend in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "gpu", "mend"), [(None, True, "pip install 'unmask[four-bit]'"), (object(), False, "needs a CUDA GPU")]
)
def test_four_bit_without_bitsandbytes_or_gpu_is_refused(extra, gpu, mend, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(four_bit, "find_spec", lambda name: extra)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("unmask.training.build.World.start", lambda *_, **__: World.single())
        assert main(["train", "--train.four-bit", "true", "--train.lora-rank", "4", "--output", str(output)]) == 2
    assert mend in capsys.readouterr().err
    assert not output.exists()


@pytest.fixture
def trained(monkeypatch, request):
    """A model in 4 bits (on the CPU, where bitsandbytes is slow but the same) whose adapters say something."""
    pytest.importorskip("bitsandbytes", reason="needs the extra four-bit")
    monkeypatch.setattr(four_bit, "check_four_bit", lambda: None)
    denoiser = load_denoiser(request.param, four_bit=True)
    add_adapters(denoiser, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (weight for weight in denoiser.parameters() if weight.requires_grad):
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return denoiser.eval()


MODELS = ("embedded:sudoku", str(REFERENCE / "models" / "llada-tiny"))


@pytest.mark.parametrize("trained", MODELS[:1], indirect=True)
def test_four_bit_linear_layers_have_float32_adapters(trained):
    weights = dict(trained.named_parameters())
    base = {name for name in weights if name.endswith("base_layer.weight")}
    assert base
    assert all(weights[name].dtype == torch.uint8 for name in base)
    assert {weight.dtype for weight in weights.values() if weight.requires_grad} == {torch.float32}
    assert not any(weights[name].requires_grad for name in base)
    logits_now = logits(trained)
    assert (logits(AdaptersOff(trained)) - logits_now).abs().max() > 0.1


@pytest.mark.parametrize("trained", MODELS, indirect=True)
def test_save_denoiser_of_four_bits_writes_the_trained_policy(trained, tmp_path, request):
    source = request.node.callspec.params["trained"]
    for module in trained.modules():
        if hasattr(module, "compute_dtype"):
            module.compute_dtype = torch.float32  # as the saved model computes
    save_denoiser(trained, load_tokenizer("embedded:sudoku"), tmp_path)
    original = load_file(resolve(source) / "model.safetensors")
    saved = load_file(tmp_path / "model.safetensors")
    assert {name: (t.shape, t.dtype) for name, t in saved.items()} == {
        name: (t.shape, t.dtype) for name, t in original.items()
    }
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    torch.testing.assert_close(logits(load_denoiser(str(tmp_path)).eval()), logits(trained), rtol=1e-4, atol=1e-3)
    assert (logits(load_denoiser(source).eval()) - logits(trained)).abs().max() > 0.1


@pytest.mark.parametrize("method", ["diffu-grpo", "lfpo"])  # the second keeps a copy of the weights that sampled
def test_four_bit_step_moves_the_adapters_alone(method, monkeypatch):
    pytest.importorskip("bitsandbytes", reason="needs the extra four-bit")
    monkeypatch.setattr(four_bit, "check_four_bit", lambda: None)
    small = {
        "rollout": {"prompts": 4, "num_generations": 4},
        "train": {"examples": 32, "threads": 1, "num_iterations": 2, "lora_rank": 4, "four_bit": True},
        "evaluation": {"examples": 8, "examples_during": 4, "greedy_steps": 8},
    }
    trainer = build_trainer(build(Recipe, small | {"method": {"name": method}}))
    before = {name: weight.detach().clone() for name, weight in trainer.objective.denoiser.named_parameters()}
    metrics, _ = trainer.step(0)
    assert metrics["grad_norm"] > 0
    moved = {name for name, w in trainer.objective.denoiser.named_parameters() if not torch.equal(w, before[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
