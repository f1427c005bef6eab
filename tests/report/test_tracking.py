"""Trackers are told what metrics.jsonl and completions.jsonl hold; one that fails is left out, and said so once."""

import json
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unmask.cli.main import main
from unmask.errors import UserError
from unmask.report import tracking
from unmask.report.curve import draw_curve
from unmask.report.metrics import MetricsLog, read_metrics
from unmask.report.progress import telling
from unmask.report.tracking import Trackers
from unmask.settings.trackers import check_trackers, tracker_names

SETTINGS = {"model": "embedded:sudoku", "train.seed": 3, "model_format": None}
ROWS = [
    {"step": 0, "eval/greedy_16/solved": 0.5},
    {"step": 1, "reward": 0.25, "kl": float("nan"), "loss": 0.5},
    {"step": 1, "warning": "reward is collapsing"},
    {"step": 2, "reward": 0.75},
]
COMPLETION = {"step": 2, "prompt": "1 | 2", "completions": [{"text": "`a` | </script>\nb", "reward": 1.0}]}


def scalars(directory):
    """Every value that tensorboard shows, by its name and step."""
    events = EventAccumulator(str(directory), size_guidance={"tensors": 0, "scalars": 0})
    events.Reload()
    return {(tag, event.step): event.value for tag in events.Tags()["scalars"] for event in events.Scalars(tag)}


def told(names, directory, first_step=0, rows=ROWS):
    with telling(), Trackers(names, directory, SETTINGS, first_step, on_cpu=True) as trackers:
        with MetricsLog(directory / "metrics.jsonl", then=trackers.scalars) as metrics:
            for row in rows:
                metrics.write(row)
        trackers.completions(COMPLETION)


def test_tensorboard_has_the_numbers_under_trl_s_names_completions_and_curve(tmp_path, capsys):
    draw_curve([{"step": 1, "reward": 0.5}], tmp_path / "curve.png", "a run")
    told(["tensorboard"], tmp_path)
    assert "warning" not in capsys.readouterr().out
    found = scalars(tmp_path / "tensorboard")
    assert found == {
        ("eval/greedy_16/solved", 0): 0.5,
        ("train/reward", 1): 0.25,
        ("train/loss", 1): 0.5,
        ("train/reward", 2): 0.75,
    }
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert (events.Images("curve")[0].step, events.Images("curve")[0].width) == (2, 1000)
    (text,) = events.Tensors("completions/text_summary")
    (shown,) = text.tensor_proto.string_val
    assert "| 2 | `1 ¦ 2` | `'a' ¦ </script> b` | 1 |" in shown.decode()


def test_tensorboard_of_a_run_that_goes_on_shows_no_step_twice(tmp_path):
    told(["tensorboard"], tmp_path)
    told(["tensorboard"], tmp_path, first_step=1, rows=[{"step": 2, "reward": 0.125}])
    assert len(list(tmp_path.rglob("hparams.yml"))) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/reward")] == [(1, 0.25), (2, 0.125)]


class Fake:
    """A tracker of accelerate's kind, that fails where it is told to."""

    tracker = SimpleNamespace(id="abc", info=SimpleNamespace(run_id="abc"))

    def __init__(self, fails_at, **options):
        self.fails_at, self.options, self.calls = fails_at, options, []

    def __getattr__(self, name):
        def call(*arguments, **options):
            self.calls.append((name, arguments))
            if name == self.fails_at:
                raise ConnectionError("no\nnetwork")

        return call


@pytest.fixture
def fake(monkeypatch):
    made = []

    def use(fails_at=None):
        def make(**options):
            made.append(Fake(fails_at, **options))
            return made[-1]

        monkeypatch.setattr(tracking, "_tracker_class", lambda name, on_cpu: make)
        return made

    return use


@pytest.mark.parametrize("fails_at", ["start", "store_init_configuration", "log", "log_table", "finish"])
def test_a_tracker_that_fails_is_told_of_once_and_everything_is_in_metrics_jsonl(fails_at, fake, tmp_path, capsys):
    fake(fails_at)
    told(["wandb"], tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "wandb" in line]
    assert len(lines) == 1
    assert "ConnectionError: no network" in lines[0]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [0, 1, 1, 2]


def test_a_run_that_goes_on_is_the_tracker_s_same_run(fake, tmp_path):
    made = fake()
    told(["wandb"], tmp_path)
    told(["wandb"], tmp_path, first_step=2)
    first, second = made
    assert (first.options["id"], second.options["id"]) == (None, "abc")
    assert first.options["resume"] == "allow"
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "abc"}
    told_settings = [arguments for name, arguments in first.calls if name == "store_init_configuration"]
    assert told_settings == [({"model": "embedded:sudoku", "train.seed": 3},)]
    assert not [name for name, _ in second.calls if name == "store_init_configuration"]


def test_curve_and_page_are_given_at_the_end(fake, tmp_path):
    made = fake()
    (tmp_path / "report.html").write_text("<html>")
    told(["mlflow"], tmp_path)
    files = [arguments[0] for name, arguments in made[0].calls if name == "log_artifact"]
    assert [path.rpartition("/")[2] for path in files] == ["report.html"]


def test_no_tracker_is_imported_where_none_is_named(tmp_path):
    before = "accelerate.tracking" in sys.modules
    told([], tmp_path)
    assert ("accelerate.tracking" in sys.modules) == before
    assert not (tmp_path / "trackers.json").exists()


def test_names_of_trackers_are_checked_before_anything_is_loaded(monkeypatch, tmp_path, capsys):
    assert tracker_names("wandb, tensorboard") == ("wandb", "tensorboard")
    assert tracker_names("") == ()
    with pytest.raises(UserError, match="'weights' is unknown: give one of wandb, tensorboard, trackio, mlflow"):
        tracker_names("weights")
    with pytest.raises(UserError, match="each tracker once"):
        tracker_names("wandb,wandb")
    monkeypatch.setattr("unmask.settings.trackers.find_spec", lambda name: None if name == "wandb" else object())
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'unmask\[track\]'"):
        check_trackers(["tensorboard", "wandb"])
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--track", "wandb"]) == 2
    assert "wandb is not installed" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_without_its_identity_fails_as_any_other(fake, tmp_path, capsys, monkeypatch):
    fake()
    monkeypatch.setattr(Fake, "tracker", None)
    told(["mlflow"], tmp_path)
    assert "tracker mlflow failed" in capsys.readouterr().out
