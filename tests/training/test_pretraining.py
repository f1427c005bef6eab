"""Supervised training in a directory: killed, signalled or damaged it goes on to the same model, bit for bit."""

import math
import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from faults.injected import AtWrite
from helpers.processes import start
from unmask.cli.main import main
from unmask.denoisers.directories import LOCK
from unmask.denoisers.loading import load_denoiser
from unmask.training import supervised
from unmask.training.supervised import Pretraining

SIZES = {"hidden": 16, "layers": 1, "heads": 2, "max_length": 32}
TRAINED = {"batch": 8, "examples": 64, "max_steps": 6, "threads": 1, "warmup_steps": 1, "learning_rate": 0.02}
KEPT = {"validation_examples": 8, "eval_steps": 2, "save_steps": 2}


def words(settings):
    return [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]


NEW = ["pretrain", *words(SIZES | TRAINED | KEPT)]
ADAPTED = ["pretrain", "--model", "embedded:sudoku", "--lora-rank", "2", *words(TRAINED | KEPT)]


def outcome(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What each command leaves that nothing happens to."""
    folder, found = tmp_path_factory.mktemp("whole"), {}
    for name, command in (("new", NEW), ("adapted", ADAPTED)):
        assert main([*command, "--output", str(folder / name)]) == 0
        found[name] = outcome(folder / name)
        assert not any(path.is_dir() for path in (folder / name).iterdir())
    assert {"recipe.toml", "metrics.jsonl", "model.safetensors", "config.json"} <= found["new"].keys()
    return found


def killed(directory: Path, what: str, time: int) -> int:
    """The training, which kills itself at a write."""
    AtWrite(folder=str(directory), what=what, time=time)()
    return main([*NEW, "--output", str(directory)])


@pytest.mark.parametrize(
    ("what", "time"),
    [
        ("opens checkpoints/.step.partial/state.json", 2),
        ("renames .model.partial/config.json", 1),
        ("renames checkpoints", 1),
    ],
)
def test_pretraining_that_is_killed_goes_on_to_the_same_model(what, time, whole, tmp_path):
    model, log = tmp_path / "model", tmp_path / "log"
    process = start(killed, model, what, time, log=log)
    process.join(timeout=120)
    assert process.exitcode == -9, log.read_text()
    if (model / "config.json").exists():
        assert outcome(model).items() >= {LOCK: outcome(model)[LOCK]}.items() | whole["new"].items()
        return
    assert main(["pretrain", "--resume", str(model)]) == 0
    assert outcome(model) == whole["new"]
    assert not any(path.is_dir() for path in model.iterdir())


@pytest.mark.parametrize(
    ("name", "command", "number", "code"), [("new", NEW, signal.SIGTERM, 143), ("adapted", ADAPTED, signal.SIGINT, 130)]
)
def test_pretraining_that_is_told_to_end_saves_and_goes_on(
    name, command, number, code, whole, tmp_path, monkeypatch, capfd
):
    update = Pretraining._update

    def signalled(training, step, indices):
        if step == 4:
            os.kill(os.getpid(), number)
        return update(training, step, indices)

    monkeypatch.setattr(Pretraining, "_update", signalled)
    model = tmp_path / "my model"
    assert main([*command, "--output", str(model)]) == code
    monkeypatch.undo()
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.endswith("goes on from its newest checkpoint, step_000005")
    assert load_denoiser(str(model)).mask_id == load_denoiser(str(model / "checkpoints" / "step_000005")).mask_id
    assert main(shlex.split(line.split("`")[1])[1:]) == 0
    assert outcome(model) == whole[name]


@pytest.fixture
def unfinished(tmp_path, monkeypatch):
    """A training that was interrupted with two checkpoints."""
    validate = Pretraining._validate
    monkeypatch.setattr(
        Pretraining, "_validate", lambda training, step: 1 / 0 if step == 6 else validate(training, step)
    )
    assert main([*NEW, "--output", str(tmp_path / "model")]) == 1
    monkeypatch.undo()
    return tmp_path / "model"


def test_pretraining_names_a_damaged_checkpoint_and_goes_on_from_the_one_before(unfinished, capsys):
    weights = unfinished / "checkpoints" / "step_000004" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3] + b"abc")
    capsys.readouterr()
    assert main(["pretrain", "--resume", str(unfinished)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    earlier = unfinished / "checkpoints" / "step_000002"
    assert "step_000004 is damaged: " in line
    assert line.endswith(f"--resume {earlier}")
    assert main(["pretrain", "--resume", str(earlier), "--save-steps", "1"]) == 0
    assert load_denoiser(str(unfinished)).mask_id == 6


def test_pretraining_refuses_what_it_cannot_go_on_with(unfinished, tmp_path, capsys):
    done = shutil.copytree(unfinished, tmp_path / "done")
    assert main(["pretrain", "--resume", str(done)]) == 0
    for command, said in (
        (["--resume", str(unfinished), "--learning-rate", "1"], "--learning-rate is 1.0, and the run that goes on"),
        (["--resume", str(unfinished), "--max-steps", "3"], "steps is 3, and the checkpoint has 4 steps"),
        (["--resume", str(done)], "holds the model of a training that is done"),
        (["--output", str(done)], "is not empty: give a new directory"),
        (["--output", str(unfinished)], f"or --resume {unfinished} to continue its run"),
        ([], "pretrain needs --output"),
        (["--output", "a", "--resume", str(unfinished)], "pretrain needs --output"),
    ):
        capsys.readouterr()
        assert main(["pretrain", *command]) == 2
        assert said in capsys.readouterr().err


def test_pretraining_skips_updates_that_are_not_finite_and_ends_after_three(tmp_path, monkeypatch, capsys):
    loss, calls = supervised.elbo_loss, []

    def spoilt(*arguments):
        calls.append(1)
        return loss(*arguments) * (math.nan if len(calls) in (2, 4, 5, 6) else 1)

    monkeypatch.setattr(supervised, "elbo_loss", spoilt)
    flags = words(SIZES | TRAINED | {"save_steps": 1})
    assert main(["pretrain", *flags, "--output", str(tmp_path / "model")]) == 2
    printed = capsys.readouterr()
    assert printed.out.count("its update was skipped: the loss is nan") == 4
    assert "steps 4 to 6 were skipped, one after another: the loss is nan" in printed.err
    assert (tmp_path / "model" / "checkpoints" / "step_000003").is_dir()
