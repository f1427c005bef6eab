"""Train the embedded model for long and watch the process: memory, descriptors, threads and rate must stay flat.

    make soak                      # an hour; soak.png
    make soak MINUTES=2            # the short form

Rewards are the task's, a remembered one of the user's and an asynchronous one. Ends with status 1 where something
grows.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

REWARDS = '''
"""Reward functions of the soak."""

import asyncio

from unmask.rewards import cached


@cached
def digits(completions, **columns):
    return [sum(map(str.isdigit, text)) / 100 for text in completions]


async def slow(completions, **columns):
    await asyncio.sleep(0.001)
    return [0.0] * len(completions)
'''
_EVERY_SECONDS = 1.0
_TICKS = os.sysconf("SC_CLK_TCK")
_REWARD_MEGABYTES = 2 * 16  # of the remembered functions, as docs/rewards.md says
_PLACES = ("megabytes", "descriptors", "threads", "step_milliseconds")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a process is seen to hold at a time, and what it has done."""

    seconds: float
    megabytes: float  # resident
    descriptors: int
    threads: int
    cpu_seconds: float
    steps: int


def look(process: int, log: Path, seconds: float) -> Sample:
    """A sample of a running process. Raises OSError where it is gone."""
    root = Path(f"/proc/{process}")
    status = dict(line.split(":", 1) for line in (root / "status").read_text().splitlines() if ":" in line)
    ticks = (root / "stat").read_text().rpartition(")")[2].split()[11:13]
    return Sample(
        seconds=seconds,
        megabytes=int(status["VmRSS"].split()[0]) / 1024,
        descriptors=len(list((root / "fd").iterdir())),
        threads=int(status["Threads"]),
        cpu_seconds=sum(map(int, ticks)) / _TICKS,
        steps=log.read_bytes().count(b'"learning_rate"') if log.is_file() else 0,
    )


def soak(seconds: float, directory: Path) -> list[Sample]:
    """Samples of a training run that is interrupted after so long. Raises RuntimeError where it ends by itself."""
    (directory / "soak_rewards.py").write_text(REWARDS)
    functions = ",".join(["task", *(f"{directory / 'soak_rewards.py'}:{name}" for name in ("digits", "slow"))])
    flags = {"--train.max-steps": "10000000", "--reward.funcs": functions, "--reward.weights": "1,0,0"}
    flags |= {"--evaluation.examples": "64", "--evaluation.examples-during": "64", "--train.threads": "1"}
    words = [word for flag in flags.items() for word in flag]
    command = [sys.executable, "-m", "unmask", "train", *words, "--output", str(directory / "run")]
    samples: list[Sample] = []
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)  # noqa: S603
        begin = time.monotonic()
        try:
            while time.monotonic() - begin < seconds:
                time.sleep(_EVERY_SECONDS)
                if process.poll() is not None:
                    raise RuntimeError(f"the run has ended by itself: {(directory / 'log').read_text()[-1000:]}")
                samples.append(look(process.pid, directory / "run" / "metrics.jsonl", time.monotonic() - begin))
        finally:
            process.terminate()  # SIGINT is ignored by what a shell starts in the background
            process.wait(60)
    return [sample for sample in samples if sample.steps]


def thirds(samples: list[Sample]) -> tuple[dict[str, float], dict[str, float]]:
    """Medians in the second and the last third of the time, the first being a warm-up."""
    cut = len(samples) // 3
    found = []
    for part in (samples[cut : 2 * cut + 1], samples[2 * cut :]):
        row = {name: float(median(getattr(sample, name) for sample in part)) for name in _PLACES[:3]}
        steps = part[-1].steps - part[0].steps
        row["step_milliseconds"] = 1000 * (part[-1].cpu_seconds - part[0].cpu_seconds) / max(1, steps)
        found.append(row)
    return found[0], found[1]


def growing(samples: list[Sample]) -> list[str]:
    """What has grown from the second third to the last by more than noise and the bounded memory of rewards."""
    middle, last = thirds(samples)
    allowed = {
        "megabytes": middle["megabytes"] * 1.02 + _REWARD_MEGABYTES,
        "descriptors": middle["descriptors"] + 1,
        "threads": middle["threads"] + 1,
        "step_milliseconds": middle["step_milliseconds"] * 1.2,
    }
    return [f"{name}: {middle[name]:.1f}, then {last[name]:.1f}" for name in _PLACES if not last[name] <= allowed[name]]


def draw(samples: list[Sample], path: Path) -> None:
    """One panel for each that must be flat."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    minutes = [sample.seconds / 60 for sample in samples]
    figure, axes = plt.subplots(2, 2, figsize=(9, 5), sharex=True, layout="constrained")
    panels = {
        "resident memory (MB)": [sample.megabytes for sample in samples],
        "open descriptors": [sample.descriptors for sample in samples],
        "threads": [sample.threads for sample in samples],
        "steps so far": [sample.steps for sample in samples],
    }
    for axis, (title, values) in zip(axes.flat, panels.items(), strict=True):
        axis.plot(minutes, values, linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.set_ylim(0, 1.2 * max(values))
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    figure.savefig(path, dpi=100)


def main() -> int:
    """Soak, draw and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--figure", type=Path, help="where to draw what was seen")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        samples = soak(60 * options.minutes, Path(directory))
    if len(samples) < 6:
        print(f"{len(samples)} samples with steps: soak for longer")
        return 1
    if options.figure is not None:
        draw(samples, options.figure)
    middle, last = thirds(samples)
    print(
        f"{samples[-1].steps:,} steps in {samples[-1].seconds / 60:.1f} minutes; medians of the second and last third:"
    )
    for name in _PLACES:
        print(f"  {name:20} {middle[name]:10.1f} {last[name]:10.1f}")
    faults = growing(samples)
    print("flat" if not faults else "GROWING " + "; ".join(faults))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
