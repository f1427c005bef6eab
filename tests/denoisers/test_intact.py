"""Damaged model files: one line with file and mend, in every command that loads a model."""

import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from unmask.cli.main import main
from unmask.denoisers.intact import check_tensors
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
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.fixture
def model(tmp_path) -> Path:
    shutil.copytree(SUDOKU, tmp_path / "model")
    return tmp_path / "model"


LOADED = [
    ("model.safetensors", load_denoiser, DAMAGES),
    ("config.json", load_denoiser, DAMAGES),
    ("generation_config.json", load_denoiser, DAMAGES),
    ("tokenizer.json", load_denoiser, DAMAGES),
    ("tokenizer.json", load_tokenizer, DAMAGES),
    ("tokenizer_config.json", load_tokenizer, DAMAGES),
    (
        "chat_template.jinja",
        load_tokenizer,
        ("pointer", "noise", "a directory", "endless", "a pipe"),
    ),  # cut, it is text still
]


@pytest.mark.parametrize(
    ("name", "load", "damage"), [(name, load, damage) for name, load, damages in LOADED for damage in damages]
)
def test_load_refuses_a_damaged_file_in_one_line(name, load, damage, model):
    (model / "chat_template.jinja").write_text("{{ messages }}")
    DAMAGES[damage](model / name)
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


def test_load_denoiser_refuses_an_index_that_names_no_shards(model):
    load_denoiser(str(model)).model.save_pretrained(model / "parts", max_shard_size="60KB")
    (model / "model.safetensors").unlink()
    for shard in (model / "parts").glob("model*"):
        shard.rename(model / shard.name)
    index = model / "model.safetensors.index.json"
    for content in ("{}", '{"weight_map": []}', '{"weight_map": {"model.norm.weight": 3}}', '{"weight_map": {}}', "[]"):
        index.write_text(content)
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
            load_denoiser(str(model))


@pytest.mark.parametrize("fault", ["of no shard", "not in its shard"])
def test_load_denoiser_refuses_a_tensor_that_the_shards_lack(fault, model):
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    name = next(iter(tensors))
    where = {key: "model-1.safetensors" for key in tensors if fault == "not in its shard" or key != name}
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    with pytest.raises(UserError, match=f"lacks {name}"):
        load_denoiser(str(model))


def test_check_tensors_reads_the_header_as_safetensors_does(tmp_path):
    """Headers that are JSON and fit the length of the file, and yet say nothing that can be read."""
    good = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    faults = {"dtype": "F99", "shape": [3], "data_offsets": [8, 8]}
    for header in (good, *({"a": good["a"] | {key: value}} for key, value in faults.items())):
        text = json.dumps(header).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
        if header is good:
            check_tensors(path)
        else:
            with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
                check_tensors(path)


@pytest.mark.parametrize(
    "content", ['{"is_causal": false}', '{"model_type": "llama", "is_causal": false, "hidden_size": "many"}']
)
def test_load_denoiser_refuses_a_config_that_makes_no_network(content, model):
    (model / "config.json").write_text(json.dumps({"mask_token_id": 6, "eos_token_id": 5} | json.loads(content)))
    with pytest.raises(UserError):
        load_denoiser(str(model))


def test_load_refuses_adapters_of_peft_by_name(model):
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"}))
    (model / "adapter_model.safetensors").write_bytes(b"cut")
    for load in (load_denoiser, load_tokenizer):
        with pytest.raises(UserError, match="adapters of peft: merge them"):
            load(str(model))


COMMANDS = {
    "train": ("--output",),
    "sample": (),
    "evaluate": ("--output",),
    "pretrain": ("--output",),
    "convert": ("--output",),
    "plan": (),
}
READ = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (command, name)
        for command in COMMANDS
        for name in READ
        if not (command == "plan" and name.startswith("tokenizer"))  # not read
    ],
)
def test_commands_refuse_a_damaged_model_before_anything_is_written(command, name, model, tmp_path, capsys):
    config = json.loads((model / "config.json").read_text()) | {"is_causal": command != "convert"}
    (model / "config.json").write_text(json.dumps(config))
    content = (model / name).read_bytes()
    output = [word for flag in COMMANDS[command] for word in (flag, str(tmp_path / "out"))]
    for damage in ("cut", "empty", "pointer"):
        DAMAGES[damage](model / name)
        capsys.readouterr()
        assert main([command, "--model", str(model), *output]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line
        assert not (tmp_path / "out").exists()
        (model / name).write_bytes(content)


def test_convert_refuses_weights_that_do_not_fit(model, tmp_path, capsys):
    """A tensor that is missing would be random, and written as if it had been learnt."""
    config = json.loads((model / "config.json").read_text()) | {"is_causal": True}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    name = sorted(tensors)[-1]
    for changed in ({}, {name: tensors[name][:-1].contiguous()}):
        save_file(
            {key: tensor for key, tensor in tensors.items() if key != name} | changed, model / "model.safetensors"
        )
        assert main(["convert", "--model", str(model), "--output", str(tmp_path / "out")]) == 2
        assert name in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["../model.safetensors", "/etc/passwd", "..", ".", "", "a/../model.safetensors"])
def test_load_denoiser_refuses_an_index_that_leads_out_of_its_directory(place, model):
    names = load_file(model / "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, place)}))
    with pytest.raises(UserError, match="outside its directory"):
        load_denoiser(str(model))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("hidden_size", 2**20),
        ("vocab_size", 2**40),
        ("intermediate_size", 2**50),
        ("num_key_value_heads", 2**40),
        ("num_attention_heads", 0),
        ("head_dim", -1),
        ("dtype", []),
        ("rope_parameters", {"rope_type": {}}),
        ("hidden_act", None),
    ],
)
def test_load_denoiser_refuses_a_config_that_lies(key, value, model):
    """Before memory is taken for what it describes."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        load_denoiser(str(model))
    assert "\n" not in str(caught.value)


def test_load_denoiser_takes_a_config_whose_weights_are_tied(model):
    """Whose file holds fewer weights than the network has names for."""
    config = json.loads((model / "config.json").read_text()) | {"tie_word_embeddings": True}
    (model / "config.json").write_text(json.dumps(config))
    tensors = load_file(model / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert load_denoiser(str(model)).mask_id == 6
