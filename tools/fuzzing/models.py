"""Target: model directories that are cut, lie about their shapes, or lead elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from transformers.utils import logging

from fuzzing.values import JSON, damaged, mutated_json
from unmask.data.example import Example
from unmask.data.examples import Examples
from unmask.denoisers.directories import ASSETS, find_model
from unmask.denoisers.loading import load_denoiser, load_tokenizer

logging.disable_progress_bar()  # as every command does
logging.set_verbosity_error()

_BASE = ASSETS / "sudoku"
_OUTSIDE = ["../../../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/null", "/", "missing"]
_JSON_FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
_INDEX = "model.safetensors.index.json"
_CODE = "raise SystemError('code of a checkpoint has run')\n"
_TEMPLATES = [
    "{{ 1/0 }}", "{{ x.y.z }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{% if %}", "{{ messages[99] }}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.system('false') }}", "{{ raise_exception('no') }}",
    "", " ", "{% include '/etc/passwd' %}", "{{ 'x' | int(none) }}",
]  # fmt: skip
_FILES = {path.name: path.read_bytes() for path in _BASE.iterdir()}
_TENSORS = load_file(_BASE / "model.safetensors")

# A change: what is done, to which file or tensor, with what.
Change = tuple[str, str, Any]


@st.composite
def _changes(draw: st.DrawFn) -> Change:
    kind = draw(
        st.sampled_from(
            ["bytes", "json", "json", "json", "tensor", "link", "folder", "gone", "index", "code", "template"]
        )
    )
    name = draw(st.sampled_from(sorted(_FILES)))
    if kind == "bytes":
        return kind, name, draw(damaged(_FILES[name]))
    if kind == "json":
        name = draw(st.sampled_from(_JSON_FILES))
        return kind, name, draw(mutated_json(json.loads(_FILES[name])))
    if kind == "tensor":
        return kind, draw(st.sampled_from(sorted(_TENSORS))), draw(st.sampled_from(["gone", "wide", "flat", "half"]))
    if kind == "template":
        table = json.loads(_FILES["tokenizer_config.json"]) | {
            "chat_template": draw(st.sampled_from(_TEMPLATES) | JSON)
        }
        return "json", "tokenizer_config.json", table
    if kind == "index":
        shard = draw(st.sampled_from([*_OUTSIDE, "model.safetensors", "./model.safetensors", "", "config.json"]))
        return kind, _INDEX, {"metadata": {}, "weight_map": dict.fromkeys(_TENSORS, shard)}
    return kind, name, draw(st.sampled_from(_OUTSIDE))


model_directories = st.lists(_changes(), min_size=1, max_size=2)


def run_model(changes: list[Change], directory: Path) -> None:
    """Load the tokenizer and the denoiser of a changed directory, and run it once."""
    model = directory / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    for name, content in _FILES.items():
        (model / name).write_bytes(content)
    for change in changes:
        _apply(model, *change)
    find_model(str(model))
    tokenizer = load_tokenizer(str(model))
    denoiser = load_denoiser(str(model))
    example = Example(prompt="1003000000000000", solution="1243341221344321", columns={})
    examples = Examples.of([example], tokenizer, denoiser.eos_id, denoiser.max_length)
    examples.texts(tokenizer, [0], [list(examples.prompt_ids[0])])
    tokens_NL = torch.full((1, 4), denoiser.mask_id)
    with torch.no_grad():
        denoiser.model(input_ids=tokens_NL)


def _apply(model: Path, kind: str, name: str, value: Any) -> None:
    path = model / name
    if kind == "tensor":
        _change_tensor(model / "model.safetensors", name, value)
        return
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
    if kind == "bytes":
        path.write_bytes(value)
    elif kind in ("json", "index"):
        path.write_text(json.dumps(value))
    elif kind == "link":
        path.symlink_to(value)
    elif kind == "folder":
        path.mkdir()
    elif kind == "code":
        (model / "modeling_x.py").write_text(_CODE)
        auto_map = {"AutoConfig": "modeling_x.X", "AutoModelForCausalLM": "modeling_x.Y"}
        config = {**json.loads(_FILES["config.json"]), "auto_map": auto_map, "model_type": "x"}
        (model / "config.json").unlink(missing_ok=True)
        (model / "config.json").write_text(json.dumps(config))


def _change_tensor(path: Path, name: str, how: str) -> None:
    tensors = dict(_TENSORS)
    tensor = tensors.pop(name)
    if how == "wide":
        tensors[name] = tensor.repeat(2, axis=0)
    elif how == "flat":
        tensors[name] = tensor.reshape(-1)
    elif how == "half":
        tensors[name] = tensor.astype("float16")
    if path.is_file() and not path.is_symlink():
        save_file(tensors, path)
