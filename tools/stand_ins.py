"""Make the stand-ins for published checkpoints: `python tools/stand_ins.py OUTPUT_DIR`.

OUTPUT_DIR/FAMILY is a small network in the family's published layout, with a tokenizer that has its special tokens and
chat template, taught by `unmask pretrain` to answer Countdown, Sudoku, GSM8K and MATH-500 in their formats, sometimes
rightly; OUTPUT_DIR/FAMILY-careless was then taught to answer 0 more often than not, from which a run can learn much;
OUTPUT_DIR/data holds the word problems. The same seed gives the same bytes on the same machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rehearsal.benchmarks import corpus, lessons, write_problems
from rehearsal.checkpoints import write_untaught
from rehearsal.commands import unmask
from rehearsal.families import FAMILIES, Family


@dataclass(frozen=True, kw_only=True)
class Course:
    """One supervised training: rows and settings of `unmask pretrain`."""

    rows: int
    batch: int
    steps: int
    learning_rate: float
    few_shot: int = 0
    careless: bool = False

    def steps_of(self, family: Family) -> int:
        """Optimizer updates: some families learn sooner."""
        return round(self.steps * _PACE[family.name])


_PACE = {"llada": 1.4, "dream": 1.4, "llada2": 0.75}
COURSES = (
    Course(rows=57_600, batch=32, steps=1440, learning_rate=2e-3),
    Course(rows=6_000, batch=16, steps=300, learning_rate=5e-4, few_shot=3),
)
CARELESS = Course(rows=6_000, batch=32, steps=120, learning_rate=5e-4, careless=True)
LONGEST = 40  # tokens of a taught completion and its end


def main() -> int:
    """Make the stand-ins; 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--jobs", type=int, default=2, help="families taught at a time, one thread each")
    options = parser.parse_args()
    families = options.families.split(",")
    with ThreadPoolExecutor(options.jobs) as pool, being_taught(options.output, options.seed, families, pool):
        pass  # which waits for all
    return 0


@contextmanager
def being_taught(
    output: Path, seed: int, families: list[str], pool: ThreadPoolExecutor
) -> Iterator[dict[str, Future[None]]]:
    """Families that are not there yet, each taught in the pool, by name; all are done at the end."""
    wanted = [FAMILIES[name] for name in families if not (output / name / "config.json").is_file()]
    if not wanted:
        yield {}
        return
    work = output / "work"
    write_problems(output / "data", seed)
    texts = corpus(output / "data", seed)
    work.mkdir(exist_ok=True)
    (work / "held_out.jsonl").write_text(json.dumps({"prompt": "held out", "completion": "nothing"}) + "\n")
    for number, course in enumerate((*COURSES, CARELESS)):
        _write_lessons(output / "data", work / f"lessons_{number}.jsonl", course, seed)
    taught = {family.name: pool.submit(_teach, family, output, texts, seed) for family in wanted}
    yield taught
    for family in taught.values():
        family.result()
    shutil.rmtree(work)


def _write_lessons(data: Path, path: Path, course: Course, seed: int) -> None:
    rows = lessons(data, course.rows, seed, careless=course.careless)
    if course.few_shot:  # half of the rows, or the rest is forgotten
        shown = lessons(data, course.rows // 2, seed, few_shot=course.few_shot)
        rows = [row for pair in zip(rows, shown, strict=False) for row in pair]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _teach(family: Family, output: Path, texts: list[str], seed: int) -> None:
    """Have the family's stand-in, and the one that was taught carelessness too."""
    started, work = time.monotonic(), output / "work" / family.name
    write_untaught(family, work / "untaught", texts, seed)
    models = [work / "untaught"]
    for number, course in enumerate((*COURSES, CARELESS)):
        models.append(work / f"course_{number}")
        settings = {
            "model": models[-2],
            "output": models[-1],
            "task": "dataset",
            "task.data": output / "work" / f"lessons_{number}.jsonl",
            "task.test-data": output / "work" / "held_out.jsonl",
            "task.max-new-tokens": LONGEST,
            "batch": course.batch,
            "max-steps": course.steps_of(family),
            "examples": course.rows,
            "learning-rate": course.learning_rate,
            "threads": 1,
            "seed": seed,
        }
        unmask("pretrain", settings, log=output / "work" / f"{family.name}.log")
    models[-1].rename(output / careless(family.name))
    models[-2].rename(output / family.name)
    print(f"{family.name}: {time.monotonic() - started:.0f} s", flush=True)


def careless(family: str) -> str:
    """The name of the family's stand-in that answers 0 more often than not."""
    return f"{family}-careless"


if __name__ == "__main__":
    sys.exit(main())
