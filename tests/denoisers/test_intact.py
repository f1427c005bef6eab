"""Damaged model files: one line with file and mend, in every command that loads a model."""

import json
import shutil
from pathlib import Path

import pytest

from unmask.cli.main import main
from unmask.denoisers.loading import load_denoiser, load_tokenizer, resolve
from unmask.errors import UserError

SUDOKU = resolve("embedded:sudoku")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "cut to a byte": lambda path: path.write_bytes(path.read_bytes()[:1]),
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "pointer": lambda path: path.write_bytes(POINTER),
    "noise": lambda path: path.write_bytes(b"\xff" * path.stat().st_size),
    "a directory": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.fixture
def model(tmp_path) -> Path:
    shutil.copytree(SUDOKU, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_load_refuses_a_damaged_file_in_one_line(name, damage, model):
    DAMAGES[damage](model / name)
    load = load_tokenizer if name.startswith("tokenizer") else load_denoiser
    with pytest.raises(UserError) as refusal:
        load(str(model))
    line = str(refusal.value)
    assert "\n" not in line
    assert name in line or "config.json" in line
    assert ("git lfs pull" in line) == (damage == "pointer")


@pytest.mark.parametrize("fault", ["missing", "cut"])
def test_load_denoiser_refuses_a_faulty_shard_by_name(fault, model):
    denoiser = load_denoiser(str(model))
    (model / "model.safetensors").unlink()
    denoiser.model.save_pretrained(model, max_shard_size="60KB")
    shard = sorted(model.glob("model-*.safetensors"))[1]
    load_denoiser(str(model))
    DAMAGES["cut"](shard) if fault == "cut" else shard.unlink()
    with pytest.raises(UserError, match=shard.name):
        load_denoiser(str(model))


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "pretrain"])
def test_commands_refuse_a_damaged_model_before_anything_is_written(command, model, tmp_path, capsys):
    DAMAGES["cut"](model / "model.safetensors")
    output = ["--output", str(tmp_path / "out")] if command != "sample" else []
    assert main([command, "--model", str(model), *output]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.safetensors" in line
    assert not (tmp_path / "out").exists()


def test_convert_refuses_a_damaged_model(model, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text()) | {"is_causal": True}
    (model / "config.json").write_text(json.dumps(config))
    DAMAGES["cut"](model / "model.safetensors")
    assert main(["convert", "--model", str(model), "--output", str(tmp_path / "out")]) == 2
    assert "model.safetensors" in capsys.readouterr().err
