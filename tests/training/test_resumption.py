"""--resume: more steps, a copy elsewhere, an earlier checkpoint; what cannot be obeyed or read is refused by name."""

import json
import shlex
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from unmask.cli.main import main
from unmask.errors import UserError
from unmask.settings.recipe import TrainSettings
from unmask.training.checkpoint import check_whole
from unmask.training.run import Run

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FLAGS = [
    *("--recipe", "sudoku-diffu-grpo", "--train.threads", "1", "--train.final-fraction", "1", "--train.examples", "16"),
    *("--train.save-steps", "1", "--train.save-total-limit", "3", "--train.num-iterations", "1"),
    *("--rollout.prompts", "2", "--rollout.num-generations", "4", "--evaluation.examples", "4"),
    *("--evaluation.examples-during", "4"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two steps that is never written to."""
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert main(["train", *FLAGS, "--train.max-steps", "2", "--output", str(directory)]) == 0
    return directory


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def files(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def flip(file: Path, place: int) -> None:
    """Change one bit of a file."""
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def weights(directory: Path, step: int) -> dict[str, list]:
    tensors = load_file(directory / f"checkpoints/step_{step:06d}/model.safetensors")
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def refused(capsys, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["train", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_resume_extends_a_finished_run_as_if_it_had_been_longer(run, tmp_path):
    assert main(["train", "--resume", str(run), "--train.max-steps", "3"]) == 0
    assert main(["train", *FLAGS, "--train.max-steps", "3", "--output", str(tmp_path / "whole")]) == 0
    assert weights(run, 3) == weights(tmp_path / "whole", 3)
    assert json.loads((run / "summary.json").read_text())["steps"] == 3
    assert "steps = 3" in (run / "recipe.toml").read_text()


def test_resume_of_a_run_that_is_done_shows_its_results_and_measures_nothing(run, finished, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_evaluate_all", lambda *_: pytest.fail("it is measured"))
        assert main(["train", "--resume", str(run)]) == 0
    printed = capsys.readouterr().out
    assert "all 2 steps are made; give --train.max-steps for more" in printed
    assert "held-out, greedy in 4 steps: " in printed
    assert {name.replace(str(run), str(finished)): content for name, content in files(run).items()} == files(finished)


@pytest.mark.parametrize("name", ["after.json", "summary.json", "metrics.jsonl"])
def test_resume_of_a_run_whose_results_are_not_whole_measures_again(name, run, finished):
    """Metrics that end with the last step: since it was measured the run has gone on from an earlier checkpoint."""
    content = (run / name).read_bytes()
    (run / name).write_bytes(content[: content.rindex(b"\n", 0, -1) + 1] if name == "metrics.jsonl" else content[:-1])
    assert main(["train", "--resume", str(run)]) == 0
    assert (run / "after.json").read_bytes() == (finished / "after.json").read_bytes()
    assert (run / "summary.json").read_bytes() == (finished / "summary.json").read_bytes()
    assert (run / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("fraction", "times"), [pytest.param("1.0", 0, marks=pytest.mark.long), ("0.1", 1)])
def test_resume_to_more_steps_tells_once_that_the_rate_decays_over_them(fraction, times, run, capsys):
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("final_fraction = 1.0", f"final_fraction = {fraction}"))
    capsys.readouterr()
    assert main(["train", "--resume", str(run), "--train.max-steps", "3"]) == 0
    line = "the learning rate now decays over 3 steps in place of 2: steps from here on use the longer schedule"
    assert capsys.readouterr().out.splitlines().count(line) == times
    assert main(["train", "--resume", str(run)]) == 0
    assert "learning rate" not in capsys.readouterr().out


def test_resume_with_output_goes_on_in_a_copy(run, tmp_path):
    before = files(run)
    other = tmp_path / "other"
    assert main(["train", "--resume", str(run), "--train.max-steps", "3", "--output", str(other)]) == 0
    assert files(run) == before
    rows = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3]
    assert {path.name for path in (other / "checkpoints").iterdir()} == {"step_000002", "step_000003"}


@pytest.mark.parametrize(
    "flags",
    [
        ("--recipe", "sudoku-mdpo"),
        ("--train.seed", "5"),
        ("--model", "embedded:countdown"),
        ("--method", "mdpo"),
        ("--method.beta", "0.5"),
        ("--rollout.temperature", "0.5"),
        ("--task.size", "6"),
        ("--reward.funcs", "rewards.py:f"),
        ("--train.max-steps", "1"),
        ("--evaluation.examples", "5"),
    ],
    ids=" ".join,
)
def test_resume_refuses_by_name_what_would_be_another_run(flags, run, capsys):
    before = files(run)
    assert flags[0].removeprefix("--") in refused(capsys, "--resume", str(run), *flags).replace(
        "max_steps", "max-steps"
    )
    assert files(run) == before


def test_resume_with_another_setting_names_the_recipe_of_a_new_run(run, capsys):
    line = refused(capsys, "--resume", str(run), "--train.seed", "5")
    assert line.endswith(f"start a new run with --recipe {run / 'recipe.toml'}")


def test_evaluate_of_a_run_is_of_its_newest_checkpoint(finished, tmp_path):
    flags = ("--examples", "8", "--steps", "4", "--output")
    for name, model in (("run", finished), ("step", finished / "checkpoints" / "step_000002")):
        assert main(["evaluate", "--model", str(model), *flags, str(tmp_path / name)]) == 0
    assert (tmp_path / "run").read_text() == (tmp_path / "step").read_text()


def test_resume_takes_the_run_s_own_values_again(run):
    assert main(["train", "--resume", str(run), "--train.seed", "0", "--method", "diffu-grpo"]) == 0


@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "random_state.safetensors", "state.json", "config.json"]
)
@pytest.mark.parametrize("damage", ["cut", "missing", "pointer"])
def test_resume_names_the_damaged_checkpoint_and_the_one_before(name, damage, run, capsys):
    file = run / "checkpoints" / "step_000002" / name
    content = file.read_bytes()
    file.unlink()
    if damage != "missing":
        file.write_bytes(POINTER if damage == "pointer" else content[: len(content) // 2])
    line = refused(capsys, "--resume", str(run))
    assert "step_000002" in line
    assert name in line
    assert f"--resume {run / 'checkpoints' / 'step_000001'}" in line
    assert ("git lfs pull" in line) == (damage == "pointer")


@pytest.mark.parametrize("name", ["model", "optimizer", "random_state"])
def test_resume_notices_a_flipped_bit_within_tensors(name, run, capsys):
    file = run / "checkpoints" / "step_000002" / f"{name}.safetensors"
    flip(file, -3)
    before = files(run)
    line = refused(capsys, "--resume", str(run))
    assert f"step_000002 is damaged: {file} is not what was written" in line
    assert f"--resume {run / 'checkpoints' / 'step_000001'}" in line
    assert files(run) == before
    flip(run / "checkpoints" / "step_000001" / "tokenizer.json", 5)
    assert "no earlier one is whole" in refused(capsys, "--resume", str(run))


def test_check_whole_notices_a_flipped_bit_and_a_missing_file_everywhere(run):
    checkpoint = run / "checkpoints" / "step_000002"
    check_whole(checkpoint, TrainSettings())
    for file in sorted(checkpoint.iterdir()):
        content = file.read_bytes()
        places = {len(content) // 2, len(content) - 2}
        if file.name == "state.json":
            places = {content.index(b'"step": 2') + len(b'"step": 2') - 1, content.index(b'"metrics_bytes": ') + 17}
        for place in places:
            flip(file, place)
            with pytest.raises(UserError, match=f"step_000002 is damaged: .*{file.name}"):
                check_whole(checkpoint, TrainSettings())
            file.write_bytes(content)
        file.unlink()
        with pytest.raises(UserError, match=f"step_000002 is damaged: .*{file.name}"):
            check_whole(checkpoint, TrainSettings())
        file.write_bytes(content)
    check_whole(checkpoint, TrainSettings())


def test_resume_takes_checkpoints_without_digests(run):
    """As earlier versions wrote them."""
    for file in run.glob("checkpoints/*/state.json"):
        state = json.loads(file.read_text())
        assert set(state.pop("sha256")) == {path.name for path in file.parent.iterdir()}
        file.write_text(json.dumps(state))
    assert main(["train", "--resume", str(run), "--train.max-steps", "3"]) == 0


@pytest.mark.parametrize("damage", ["cut", "missing", "pointer", "empty"])
@pytest.mark.parametrize("name", ["recipe.toml", "before.json", "metrics.jsonl", "completions.jsonl"])
@pytest.mark.parametrize("flags", [(), ("--output", "copy")], ids=["in place", "copy"])
def test_resume_refuses_a_damaged_file_of_the_run_before_anything_is_written(
    flags, name, damage, run, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    content = (run / name).read_bytes()
    (run / name).unlink()
    if damage != "missing":
        (run / name).write_bytes({"pointer": POINTER, "empty": b"", "cut": content[: len(content) // 2 - 1]}[damage])
    before = files(tmp_path)
    assert name in refused(capsys, "--resume", str(run), *flags)
    assert files(tmp_path) == before


def test_resume_refuses_a_recipe_that_ends_within_a_line(run, capsys):
    """What is left of a number may be another number."""
    text = (run / "recipe.toml").read_text()
    for cut in (text[:-1], text[: text.index("examples = 16") + len("examples = 1")]):
        (run / "recipe.toml").write_text(cut)
        tomllib.loads(cut)
        assert "recipe.toml ends within a line" in refused(capsys, "--resume", str(run))


def test_resume_of_adapters_does_not_read_the_merged_weights(run):
    checkpoint, settings = run / "checkpoints" / "step_000002", TrainSettings(lora_rank=4)
    shutil.copy(checkpoint / "optimizer.safetensors", checkpoint / "adapters.safetensors")
    flip(checkpoint / "model.safetensors", -3)
    check_whole(checkpoint, settings)
    flip(checkpoint / "random_state.safetensors", -3)
    with pytest.raises(UserError, match=r"random_state\.safetensors is not what was written"):
        check_whole(checkpoint, settings)


def test_ranks_that_do_not_write_go_on_without_logs(tmp_path):
    trainer = SimpleNamespace(objective=SimpleNamespace(world=SimpleNamespace(is_main=False)))
    with Run(directory=tmp_path, trainer=trainer)._log("metrics", {"metrics_bytes": 100}, lambda row: None) as log:
        log.write({"step": 1})
    assert not any(tmp_path.iterdir())


def test_resume_goes_on_from_an_earlier_checkpoint_and_deletes_nothing(run, finished):
    (run / "checkpoints" / "step_000002" / "optimizer.safetensors").write_bytes(b"")
    assert main(["train", "--resume", str(run / "checkpoints" / "step_000001")]) == 0
    assert weights(run, 2) == weights(finished, 2)
    assert (run / "checkpoints" / "step_000002.aside" / "model.safetensors").is_file()


@pytest.mark.parametrize("done", [0, 1])
def test_train_interrupted_tells_how_to_go_on_or_start_again(done, monkeypatch, tmp_path, capsys):
    step = Run._train_step

    def interrupt(run, number, *rest):
        if number == done:
            raise KeyboardInterrupt
        step(run, number, *rest)

    monkeypatch.setattr(Run, "_train_step", interrupt)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *FLAGS, "--train.max-steps", "3", "--output", "my run"]) == 130
    line = capsys.readouterr().err.splitlines()[-1]
    assert (f"newest checkpoint, step_{done:06d}" if done else "no checkpoint yet") in line
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    hint = "start its run again" if done == 0 else "continue its run"
    assert f"or --resume 'my run' to {hint}" in refused(capsys, *FLAGS, "--output", "my run")
    assert main(shlex.split(line.split("`")[1])[1:]) == 0
    assert (tmp_path / "my run" / "summary.json").is_file()


@pytest.mark.parametrize(
    ("missing", "hint"),
    [
        ([], "or --resume '{}' to extend its run by --train.max-steps"),
        (["summary.json"], "or --resume '{}' to continue its run"),
        (["checkpoints"], "give a new directory"),
        (["checkpoints", "summary.json"], "or --resume '{}' to start its run again: it has no checkpoint"),
        (["checkpoints/step_000001", "checkpoints/step_000002"], "give a new directory"),
        (["recipe.toml"], "give a new directory"),
    ],
    ids=str,
)
def test_output_in_use_names_resume_unless_results_would_go(missing, hint, run, capsys):
    place = run.rename(run.with_name("my run"))
    for name in missing:
        path = place / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert refused(capsys, *FLAGS, "--output", str(place)).endswith(hint.format(place))


@pytest.mark.parametrize("earlier", [True, False])
def test_resume_to_fewer_steps_names_an_earlier_checkpoint_that_is_there(earlier, run, capsys):
    first = run / "checkpoints" / "step_000001"
    if not earlier:
        shutil.rmtree(first)
    line = refused(capsys, "--resume", str(run), "--train.max-steps", "1")
    assert line.endswith(f"give more, or --resume {first}" if earlier else "give more")


def test_commands_interrupted_elsewhere_give_no_hint_to_resume(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("unmask.evaluation.table.evaluation_table", interrupt)
    assert main(["evaluate"]) == 130
    assert "resume" not in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "said"), [("0", "unmask: interrupted\n"), ("1", "")])
def test_of_ranks_that_are_interrupted_the_first_says_it(rank, said, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr("unmask.evaluation.table.evaluation_table", interrupt)
    assert main(["evaluate"]) == 130
    assert capsys.readouterr().err == said


def test_an_error_is_written_with_the_end_of_its_line_for_other_ranks_write_too(monkeypatch):
    written: list[str] = []
    monkeypatch.setattr("sys.stderr", SimpleNamespace(write=written.append, flush=lambda: None))
    assert main(["train", "--nope", "1"]) == 2
    assert written == ["unmask: error: unknown argument '--nope'; see unmask train --help\n"]
