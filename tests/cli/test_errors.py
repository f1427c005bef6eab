"""Every mistake is refused at the start: exit code 2, one line with the value and the mend, no half-written run."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from unmask.cli.main import main

SUDOKU = Path(str(files("unmask.denoisers"))) / "assets" / "sudoku"
OVER_DENOISING = ("--method", "diffu-grpo", "--train.over-denoising-filter", "true")  # it records every step


def refused(capsys, *arguments: str) -> str:
    """The error line of a command that must fail."""
    assert main(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("unmask: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "value", "mend"),
    [
        (["trian"], "'trian'", "'train'"),
        (["train", "--train.learning-rat", "1"], "--train.learning-rat", "'--train.learning-rate'"),
        (["train", "--trian.steps", "3"], "'--trian.steps'", "'--train.max-steps'"),
        (["train", "--ouptut", "run"], "'--ouptut'", "'--output'"),
        (["train", "--train.learning_rate", "1"], "'--train.learning_rate'", "'--train.learning-rate'"),
        (["train", "run.toml"], "unmask train takes no argument 'run.toml'", "see unmask train --help"),
        (["plan", "sudoku-dispo", "extra"], "unmask plan takes no argument 'extra'", "see unmask plan --help"),
        (["recipes", "sudoku"], "unmask recipes takes no argument 'sudoku'", "see unmask recipes --help"),
        (["train", "--run.name", "x"], "unknown argument '--run.name'", "see unmask train --help"),
        (["evaluate", "--zzz", "x"], "unknown argument '--zzz'", "see unmask evaluate --help"),
        (["train", "--train.zzz", "x"], "unknown argument '--train.zzz'", "see --help"),
        (["plan", "nosuch"], "unknown recipe 'nosuch'", "unmask recipes lists them"),
        (["train", "--recipe", "nosuch"], "unknown recipe 'nosuch'", "unmask recipes lists them"),
        (["plan", "--model", "nowhere"], "'nowhere'", "there is no such"),
        (["sample", "--model", "./nowhere"], "'./nowhere'", "org/name"),
        (["train", "--model", "two/levels/down"], "'two/levels/down'", "there is no such directory"),
        (["train", "--model"], "--model has no value", "unmask train --help"),
        (["train", "--model", "--train.max-steps", "3"], "--model has no value", "unmask train --help"),
        (["train", "--train", "3"], "--train is '3'", "--train.NAME VALUE"),
        (["train", "--train.max-steps.x", "3"], "'--train.max-steps.x'", "no settings of its own"),
        (["plan", "--all-methods=no"], "'no'", "without a value"),
        (["train", "--train.learning-rate", "fast"], "'fast'", "a number"),
        (["train", "--train.max-steps", "1.5"], "'1.5'", "an integer"),
        (["train", "--train.max-steps", "0"], "0", "an integer from 1 to"),
        (["train", "--train.shuffle-rewards", "yes"], "'yes'", "true or false"),
        (["train", "--train.precision", "fp8"], "'fp8'", "bf16"),
        (["train", "--method", "mdpoo"], "--method is 'mdpoo'", "'mdpo'"),
        (["train", "--method.base", "espg"], "--method.base is 'espg'", "'spg'"),
        (["train", "--method.base.epsilom", "3"], "'--method.base.epsilom'", "'--method.base.epsilon'"),
        (["train", "--method.base.low", "3"], "'--method.base.low'", "give one of --method.base.beta"),
        (["train", "--method", "mdpo", "--method.advantage", "best"], "'best'", "future_mean"),
        (["train", "--task", "chess"], "'chess'", "sudoku"),
        (["train", "--task.size", "5"], "5", "4, 6 or 9"),
        (["train", "--recipe", "sudoku-dispoo"], "'sudoku-dispoo'", "'sudoku-dispo'"),
        (["train", "--recipe", "nowhere.toml"], "'nowhere.toml'", "No such file"),
        (["train", "--resume", "nowhere"], "'nowhere'", "--resume"),
        (["train", "--model", "nowhere"], "'nowhere'", "there is no such directory"),
        (["train", "--model", "embedded:chess"], "'embedded:chess'", "sudoku"),
        (["train", "--rollout.num-generations", "1"], "1", "2 or more"),
        (["train", "--rollout.block-length", "5"], "5", "divisor"),
        (["train", "--rollout.block-length", "4", "--rollout.steps", "6"], "6", "multiple"),
        (["train", "--evaluation.greedy-steps", "7", "--rollout.block-length", "4"], "7", "multiple"),
        (["train", "--rollout.unmasking", "threshold", "--rollout.unmasking.threshold", "2"], "2.0", "0.9"),
        (["train", "--method", "mdpo", "--rollout.caching", "dual"], "caching dual", "caching none"),
        (["train", "--method", "tracerl", "--rollout.unmasking", "rcr"], "rcr", "low_confidence"),
        (["train", "--rollout.unmasking", "threshold"], "unmasking threshold", "a scheduled rule"),
        (["train", *OVER_DENOISING, "--rollout.caching", "dual"], "caching dual", "caching none"),
        (["train", *OVER_DENOISING, "--rollout.unmasking", "threshold"], "unmasking threshold", "a scheduled rule"),
        (["train", "--rollout.max-new-tokens", "48"], "all that the model takes", "max_new_tokens"),
        (["train", "--task.data", "nowhere.csv"], "nowhere.csv", "No such file"),
        (["sample", "--item", "-1"], "-1", "from 0 to"),
        (["sample", "--prompt", "sudoku!"], "'sudoku!'", "tokenizer"),
        (["evaluate", "--unmasking", "low_confidence,best"], "'best'", "rcr"),
        (["evaluate", "--steps", "4,many"], "'4,many'", "4,16"),
        (["evaluate", "--split", "valid"], "'valid'", "test_unseen_grids"),
        (["evaluate", "--output", "nowhere/table.json"], "nowhere", "make"),
        (["pretrain"], "--output", "directory"),
        (["pretrain", "--heads", "5", "--output", "model"], "5 heads", "multiple"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_main_refuses_mistakes_on_the_command_line(arguments, value, mend, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = ("--train.examples", "40") if arguments[0] == "train" and "--train" not in arguments else ()
    line = refused(capsys, *arguments[:1], *few, *arguments[1:])
    assert value in line
    assert mend in line
    assert len(line) < 500
    assert list(tmp_path.iterdir()) == []


def test_evaluate_refuses_a_rule_that_cannot_be_recorded_before_another_has_run(capsys, monkeypatch):
    monkeypatch.setattr("unmask.evaluation.table.mean_metrics", lambda *_, **__: pytest.fail("measured"))
    line = refused(capsys, "evaluate", "--over-denoising", "true", "--unmasking", "low_confidence,threshold")
    assert "unmasking threshold" in line


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[train]\nlearningrate = 1e-4", "'train.learningrate'"),
        ("[train]\nlearning_rate = '1e-4'", "'1e-4'"),
        ("[train]\nmax_steps = true", "True"),
        ("train = 3", "train is 3"),
        ("[method]\nalpha = 0.5", "method.name"),
        ("steps = 3 3", "not TOML"),
    ],
)
def test_train_refuses_mistakes_in_a_recipe(text, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(text)
    assert value in refused(capsys, "train", "--recipe", "recipe.toml")
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("", "empty"), ("Puzzle,Solution\n", "no"), ("Puzzle,Solution\n12,34\n", "line 2"), ("a,b\n1,2\n", "Puzzle")],
)
def test_train_refuses_mistakes_in_a_data_file(text, value, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("puzzles.csv").write_text(text)
    assert value in refused(capsys, "train", "--task.data", "puzzles.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["puzzles.csv"]


def test_train_refuses_an_output_that_holds_something(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert "not empty" in refused(capsys, "train", "--output", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "flags", "value"),
    [
        ({"mask_token_id": None}, [], "mask_token_id"),
        ({"mask_token_id": 99}, [], "99"),
        ({"eos_token_id": None}, [], "eos_token_id"),
        ({"is_causal": True}, [], "is_causal"),
        ({"final_logit_softcapping": 30.0}, [], "final_logit_softcapping 30.0"),
        ({"block_length": 4}, [], "the 4 of the model's own blocks"),
        (
            {"block_length": 4},
            ["--rollout.block-length", "4", "--method", "diffu-grpo", "--rollout.caching", "dual"],
            "caching dual",
        ),
    ],
)
def test_train_refuses_checkpoints_that_do_not_fit(change, flags, value, capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(SUDOKU, model)
    config = json.loads((model / "config.json").read_text()) | change
    (model / "config.json").write_text(json.dumps(config))
    (model / "generation_config.json").unlink()  # it and the tokenizer would name special tokens, too
    (model / "tokenizer_config.json").write_text("{}")
    flags = ["--train.examples", "40", *flags, "--output", str(tmp_path / "run")]
    assert value in refused(capsys, "train", "--model", str(model), *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("missing", ["model.safetensors", "tokenizer.json"])
def test_sample_refuses_checkpoints_with_a_file_missing(missing, capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(SUDOKU, model)
    (model / missing).unlink()
    assert "safetensors" in refused(capsys, "sample", "--model", str(model)) or missing == "tokenizer.json"
    assert str(model) in refused(capsys, "sample", "--model", str(model))


def test_sample_refuses_to_open_a_pickled_checkpoint(capsys, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(SUDOKU, model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickled" in refused(capsys, "sample", "--model", str(model))


def test_exit_of_a_users_class_is_an_error(tmp_path, capsys):
    (tmp_path / "leaves.py").write_text(
        "import sys\nfrom unmask.tasks import Sudoku\nclass Leaves(Sudoku):\n"
        "    def examples(self, split, count, seed):\n        sys.exit(0)\n"
    )
    with pytest.raises(RuntimeError, match=r"sys.exit\(0\) was called before unmask evaluate was done"):
        main(["evaluate", "--task", f"{tmp_path / 'leaves.py'}:Leaves"])


def test_evaluate_says_how_many_tokens_a_short_model_takes(capsys):
    line = refused(capsys, "evaluate", "--lengths", "16,128", "--steps", "16", "--examples", "2")
    assert "128" in line
    assert "takes 32" in line


@pytest.mark.parametrize("command", ["evaluate", "sample", "pretrain", "plan", "oracle"])
def test_commands_that_no_ranks_share_are_refused_under_torchrun(command, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = f"unmask {command} is of one process, and WORLD_SIZE is 2: start it without torchrun"
    assert refused(capsys, command).endswith(said)
