"""Target: model directories that are cut, lie about their shapes, or lead elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.numpy import load, save_file
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
_INDEX = "model.safetensors.index.json"
_CODE = "raise SystemError('code of a checkpoint has run')\n"
_TEMPLATES = [
    "{{ 1/0 }}", "{{ x.y.z }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "{% if %}", "{{ messages[99] }}",
    "{{ ''.__class__.__mro__ }}", "{{ cycler.__init__.__globals__.os.system('false') }}", "{{ raise_exception('no') }}",
    "", " ", "{% include '/etc/passwd' %}", "{{ 'x' | int(none) }}",
]  # fmt: skip
_PUBLISHED = Path(__file__).parents[2] / "tests" / "reference" / "models"  # small ones in the published layouts
_TOKENIZER = {name: (_BASE / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
# Files of each whole model, by name. Published ones lie there without a tokenizer.
_MODELS = {
    folder.name: _TOKENIZER
    | {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "logits.safetensors"}
    for folder in (_BASE, *sorted(_PUBLISHED.iterdir()))
}

# A change: what is done, to which file or tensor, with what.
Change = tuple[str, str, Any]


# The name of the model that is changed, and the changes.
Case = tuple[str, list[Change]]


def _change(draw: st.DrawFn, files: dict[str, bytes]) -> Change:
    kinds = ["bytes", "json", "json", "json", "tensor", "link", "folder", "gone", "index", "code", "template"]
    kind = draw(st.sampled_from(kinds))
    name = draw(st.sampled_from(sorted(files)))
    if kind == "bytes":
        return kind, name, draw(damaged(files[name]))
    if kind == "json":
        name = draw(st.sampled_from([name for name in files if name.endswith(".json")]))
        return kind, name, draw(mutated_json(json.loads(files[name])))
    tensors = load(files["model.safetensors"])
    if kind == "tensor":
        return kind, draw(st.sampled_from(sorted(tensors))), draw(st.sampled_from(["gone", "wide", "flat", "half"]))
    if kind == "template":
        template = draw(st.sampled_from(_TEMPLATES) | JSON)
        return "json", "tokenizer_config.json", json.loads(files["tokenizer_config.json"]) | {"chat_template": template}
    if kind == "index":
        shard = draw(st.sampled_from([*_OUTSIDE, "model.safetensors", "./model.safetensors", "", "config.json"]))
        return kind, _INDEX, {"metadata": {}, "weight_map": dict.fromkeys(tensors, shard)}
    return kind, name, draw(st.sampled_from(_OUTSIDE))


@st.composite
def model_directories(draw: st.DrawFn) -> Case:
    """A model, and one or two things that are wrong with its files."""
    name = draw(st.sampled_from(sorted(_MODELS)))
    return name, [_change(draw, _MODELS[name]) for _ in range(draw(st.integers(1, 2)))]


def run_model(case: Case, directory: Path) -> None:
    """Load the denoiser and the tokenizer of a changed directory, and run both once."""
    base, changes = case
    files, model = _MODELS[base], directory / "model"
    shutil.rmtree(model, ignore_errors=True)
    model.mkdir()
    for name, content in files.items():
        (model / name).write_bytes(content)
    for change in changes:
        _apply(model, files, *change)
    find_model(str(model))
    denoiser = load_denoiser(str(model))
    tokens_NL = torch.full((1, 4), denoiser.mask_id)
    with torch.no_grad():
        denoiser.model(input_ids=tokens_NL)
    tokenizer = load_tokenizer(str(model))
    example = Example(prompt="1003000000000000", solution="1243341221344321", columns={})
    examples = Examples.of([example], tokenizer, denoiser.eos_id, denoiser.max_length)
    examples.texts(tokenizer, [0], [list(examples.prompt_ids[0])])


def _apply(model: Path, files: dict[str, bytes], kind: str, name: str, value: Any) -> None:
    path = model / name
    if kind == "tensor":
        _change_tensor(model / "model.safetensors", load(files["model.safetensors"]), name, value)
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
        config = {**json.loads(files["config.json"]), "auto_map": auto_map, "model_type": "x"}
        (model / "config.json").unlink(missing_ok=True)
        (model / "config.json").write_text(json.dumps(config))


def _change_tensor(path: Path, tensors: dict[str, Any], name: str, how: str) -> None:
    tensor = tensors.pop(name)
    if how == "wide":
        tensors[name] = tensor.repeat(2, axis=0)
    elif how == "flat":
        tensors[name] = tensor.reshape(-1)
    elif how == "half":
        tensors[name] = tensor.astype("float16")
    if path.is_file() and not path.is_symlink():
        save_file(tensors, path)
