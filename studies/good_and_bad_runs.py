"""Pictures of a healthy run and of three that go wrong, for docs/good-and-bad-runs.md: small, real, on two CPU cores.

    python studies/good_and_bad_runs.py --runs runs/good-and-bad --output docs

Trains what is not yet in the directory of runs (a few minutes each), tells where each began and ended and what it was
warned of, and draws a picture of each.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from unmask.report.curve import running_mean
from unmask.report.monitor import CollapseMonitor

ROOT = Path(__file__).parents[1]
SHORT = (
    "--train.final-fraction 1 --train.eval-steps 10 --train.threads 1 "
    "--evaluation.examples 500 --evaluation.examples-during 250"
)
_EQUAL = "frac_reward_zero_std"
_STYLE = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
_BLUE, _ORANGE, _VIOLET, _OCHRE, _RED, _GREY = "#0072b2", "#d55e00", "#7a5195", "#b8860b", "#c0392b", "#c8c8c8"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run by its name, what it shows and the flags that make it so."""

    name: str
    title: str
    flags: str
    steps: int = 4  # denoising steps of a rollout

    @property
    def solved(self) -> str:
        """The metric of held-out prompts, sampled as in training."""
        return f"eval/sampled_{self.steps}/solved"


RUNS = (
    Run(
        name="healthy",
        title="healthy: reward and held-out rate rise together",
        flags="--recipe sudoku-dispo --train.max-steps 60",
    ),
    Run(
        name="hacked",
        title="reward hacking: the reward rises, what it stands for falls",
        flags=f"--recipe sudoku-dispo --train.max-steps 120 --reward.funcs task,{ROOT / 'examples' / 'tidy.py'}:tidy "
        "--reward.weights 0,1 --train.learning-rate 3e-4",
    ),
    Run(
        name="collapsed",
        title="collapse: updates too large",
        flags="--recipe sudoku-diffu-grpo --train.max-steps 120 --train.num-iterations 4 --train.learning-rate 3e-4 "
        "--rollout.temperature 1",
    ),
    Run(
        name="no-signal",
        title="no signal: all completions of a group are wrong",
        flags="--recipe sudoku-diffu-grpo --train.max-steps 120 --task.min-empty 12 --task.max-empty 14 "
        "--rollout.steps 1",
        steps=1,
    ),
)


def train(run: Run, directory: Path) -> list[dict[str, Any]]:
    """The metrics of a run, which is trained where it is not there."""
    if not (directory / "summary.json").is_file():
        words = [*shlex.split(f"{run.flags} {SHORT}"), "--output", str(directory)]
        subprocess.run([sys.executable, "-m", "unmask", "train", *words], check=True)  # noqa: S603
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def warnings_of(metrics: list[dict[str, Any]]) -> dict[int, str]:
    """The warnings that the run told of, by step."""
    monitor = CollapseMonitor()
    told = {line["step"]: monitor.update(line) for line in metrics if "reward" in line}
    return {step: "; ".join(warnings) for step, warnings in told.items() if warnings}


def draw(run: Run, metrics: list[dict[str, Any]], path: Path) -> None:
    """Reward and held-out rate on the left, entropy and groups without signal on the right, warnings in both."""
    with pyplot.rc_context(_STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 2.9), layout="constrained")
        figure.suptitle(run.title, x=0.01, ha="left", fontweight="bold")
        steps, rewards = _points(metrics, "reward")
        left.plot(steps, rewards, color=_GREY, linewidth=1, label="reward")
        left.plot(steps, running_mean(rewards), color="#404040", linewidth=1.8, label="mean of 10 steps")
        left.plot(*_points(metrics, run.solved), "o-", color=_BLUE, markersize=4, label="held-out solved")
        steps, entropies = _points(metrics, "entropy")
        right.plot(steps, [value / entropies[0] for value in entropies], color=_VIOLET, label="entropy / its start")
        steps, equal = _points(metrics, _EQUAL)
        right.plot(steps, running_mean(equal), color=_OCHRE, label="groups of equal rewards")
        for axes in (left, right):
            _mark(axes, warnings_of(metrics))
            axes.set(xlabel="training step", ylim=(0, None))
            axes.legend(
                fontsize=8, ncols=4, loc="lower left", bbox_to_anchor=(-0.02, 1), columnspacing=1, handlelength=1.4
            )
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def _points(metrics: list[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    lines = [line for line in metrics if name in line]
    return [line["step"] for line in lines], [line[name] for line in lines]


def _mark(axes: Axes, warnings: dict[int, str]) -> None:
    for number, step in enumerate(warnings):
        axes.axvline(step, color=_RED, linewidth=1, linestyle=":", label="_" if number else "warning")


def main() -> None:
    """Train, tell, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="directory of the four runs")
    parser.add_argument("--output", type=Path, required=True, help="directory of the pictures")
    parser.add_argument("--only", help="name of one run")
    settings = parser.parse_args()
    for run in RUNS:
        if settings.only in (None, run.name):
            metrics = train(run, settings.runs / run.name)
            draw(run, metrics, settings.output / f"run-{run.name}.png")
            for name in ("reward", run.solved, "entropy", _EQUAL):
                _, values = _points(metrics, name)
                print(f"{run.name}: {name} {values[0]:.3f}, at last {values[-1]:.3f}")
            for step, warning in warnings_of(metrics).items():
                print(f"{run.name}: step {step}: {warning}")


if __name__ == "__main__":
    main()
