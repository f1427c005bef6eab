"""A checkpoint as it is shared: whole or not there, loaded by transformers and peft without this library."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.finished_run import finished_run, moved_adapters
from helpers.processes import start
from unmask.cli.main import main
from unmask.denoisers.adapters import ADAPTERS_FILE, MergedWeights, adapters_of
from unmask.denoisers.head.reducers import AllLogits
from unmask.denoisers.loading import load_denoiser
from unmask.denoisers.peft_layout import write_peft_files
from unmask.export.source import find_source
from unmask.settings.inputs import without_directories

MODELS = Path(__file__).parents[1] / "reference" / "models"
MASKS = {"llada-moe-tiny": 159, "llada2-moe-tiny": 159}  # which their config.json does not name
TOKENS = [[1, 2, 3, 4, 2, 1]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "full")


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("runs") / "lora", lora_rank=2)


def export(source, output, *more):
    return main(["export", str(source), "--output", str(output), *more])


def error_of(capsys):
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_export_of_a_run_is_its_newest_checkpoint_and_what_tells_of_it(run, tmp_path):
    assert export(run, tmp_path / "model") == 0
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {
        *("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        *("README.md", "CITATION.bib", "recipe.toml", "curve.png"),
    }
    newest = run / "checkpoints" / "step_000002"
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (newest / "model.safetensors").read_bytes()
    assert "2 of 100 training steps" not in (tmp_path / "model" / "README.md").read_text()
    assert "2 of 2 training steps" in (tmp_path / "model" / "README.md").read_text()
    assert load_denoiser(str(tmp_path / "model")).mask_id == load_denoiser("embedded:sudoku").mask_id


def test_export_takes_a_checkpoint_and_the_embedded_directory_without_a_run(run, tmp_path):
    assert find_source(str(run / "checkpoints" / "step_000001")).step == 1
    embedded = Path(load_denoiser.__code__.co_filename).parent / "assets" / "sudoku"
    assert export(embedded, tmp_path / "model") == 0
    assert not (tmp_path / "model" / "recipe.toml").exists()


LOADED = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

full, lora, base = sys.argv[1:]
tokens = torch.tensor({tokens})
models = {{
    "full": AutoModelForCausalLM.from_pretrained(full),
    "merged": AutoModelForCausalLM.from_pretrained(lora),
    "adapted": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), lora, subfolder="adapter"),
}}
assert AutoTokenizer.from_pretrained(full).mask_token_id is not None
assert not any(name.partition(".")[0] == "unmask" for name in sys.modules)
with torch.no_grad():
    print(json.dumps({{name: model.eval()(input_ids=tokens).logits.tolist() for name, model in models.items()}}))
"""


def test_plain_transformers_and_peft_load_what_is_exported_to_the_same_logits(run, lora_run, tmp_path):
    assert export(run, tmp_path / "full") == 0
    assert export(lora_run, tmp_path / "lora") == 0
    base = Path(load_denoiser.__code__.co_filename).parent / "assets" / "sudoku"
    program = LOADED.format(tokens=TOKENS)
    words = [sys.executable, "-c", program, str(tmp_path / "full"), str(tmp_path / "lora"), str(base)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = {name: torch.tensor(values) for name, values in json.loads(done.stdout).items()}
    tokens = torch.tensor(TOKENS)
    for names, directory in ((("full",), "full"), (("merged", "adapted"), "lora")):
        denoiser = load_denoiser(str(tmp_path / directory)).eval()
        with torch.no_grad():
            (logits,) = denoiser(
                tokens, torch.ones_like(tokens).bool(), torch.arange(tokens.shape[1])[None], AllLogits()
            )
        for name in names:
            torch.testing.assert_close(found[name], logits.reshape(found[name].shape), rtol=1e-4, atol=1e-4)
    assert (found["full"] - found["merged"]).abs().max() > 0.01


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny", "llada-moe-tiny", "llada2-moe-tiny"])
def test_adapters_in_peft_s_layout_added_to_the_published_base_are_the_published_merged_weights(name, tmp_path):
    denoiser = load_denoiser(str(MODELS / name), mask_token_id=MASKS.get(name))
    rank, alpha = 2, 6
    moved_adapters(denoiser, rank, alpha)
    save_file(adapters_of(denoiser), tmp_path / ADAPTERS_FILE)
    denoiser.model.save_pretrained(tmp_path / "merged", state_dict=dict(MergedWeights(denoiser)))
    (tmp_path / "peft").mkdir()
    options = {"rank": rank, "alpha": alpha, "base": name, "model_format": None}
    write_peft_files(tmp_path / ADAPTERS_FILE, MODELS / name, tmp_path / "peft", **options)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    weights, merged = load_file(MODELS / name / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    for layer in config["target_modules"]:
        a, b = (tensors[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
        assert len(a) == config["rank_pattern"].get(layer, rank)
        scale = config["alpha_pattern"].get(layer, alpha) / len(a)
        weights[f"{layer}.weight"] += scale * b @ a
    assert len(tensors) == 2 * len(config["target_modules"])
    assert weights.keys() == merged.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(weight, merged[key], rtol=1e-5, atol=1e-5)


def damaged(run, tmp_path):
    copy = finished_run(tmp_path / "damaged")
    path = copy / "checkpoints" / "step_000002" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return copy


def unfinished(run, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.toml").write_bytes((run / "recipe.toml").read_bytes())
    return tmp_path / "new"


@pytest.mark.parametrize(
    ("source", "more", "said"),
    [
        (lambda run, tmp_path: tmp_path / "none", [], "there is no such directory"),
        (unfinished, [], "has no checkpoint yet"),
        (damaged, [], "is not what was written"),
        (lambda run, tmp_path: run, ["--push", "a/b/c"], "give ORG/NAME"),
        (lambda run, tmp_path: run, ["--push", "name"], "give ORG/NAME"),
        (lambda run, tmp_path: run, ["--push", "org/na me"], "give ORG/NAME"),
    ],
)
def test_what_is_strange_is_one_line_and_nothing_is_written(run, source, more, said, tmp_path, capsys):
    directory = source(run, tmp_path)
    capsys.readouterr()  # what writing a run shows
    assert export(directory, tmp_path / "out", *more) == 2
    assert said in error_of(capsys)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_export_never_writes_where_something_is(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert export(run, tmp_path / "out") == 2
    assert "is not empty" in error_of(capsys)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "mine.txt"]


def export_killed(run, output, writes):
    """Export, killed when so many files have been synced."""
    from unmask.export import export as room

    left = iter(range(writes))
    sync = room.sync

    def killing(path):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    room.sync = killing
    return export(run, output)


@pytest.mark.parametrize("writes", [0, 4])
def test_an_export_that_is_killed_leaves_nothing_under_its_name_and_the_next_one_is_whole(run, writes, tmp_path):
    process = start(export_killed, run, tmp_path / "out", writes, log=tmp_path / "log")
    process.join(timeout=240)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (tmp_path / "out").exists()
    assert export(run, tmp_path / "out") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "out"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/train.jsonl", "train.jsonl"),
        ("task,/home/me/reward.py:score", "task,reward.py:score"),
        ("reward_model:/models/rm,judge:/x/judge.toml", "reward_model:rm,judge:judge.toml"),
        ("GSAI-ML/LLaDA-8B-Instruct", "GSAI-ML/LLaDA-8B-Instruct"),
        ("embedded:sudoku", "embedded:sudoku"),
        ("/models/", "models"),
    ],
)
def test_without_directories_keeps_names_alone(text, shown):
    assert without_directories(text) == shown
