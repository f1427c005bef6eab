"""Try many odd inputs and say which of them break a promise: `make fuzz`, or python tools/fuzz.py --cases 1000.

Each case must give a result or one line of UserError within two seconds, and touch no file outside its directory. Ends
with status 1, and the smallest input found, where one does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from fuzzing.data import data_files, run_data_file
from fuzzing.harness import Hang, Tally, check
from fuzzing.judges import replies, run_reply
from fuzzing.models import model_directories, run_model
from fuzzing.scorers import COMPLETIONS, run_completion, run_latex
from fuzzing.settings import command_lines, recipes, run_command_line, run_recipe
from fuzzing.templates import run_template, templates


@dataclass(frozen=True)
class Target:
    """What is fuzzed: inputs, what is done with each, and its share of all cases."""

    inputs: st.SearchStrategy[Any]
    run: Callable[[Any, Path], None]
    share: float


_LONGEST_LINE = 300  # characters of a traceback's lines

TARGETS = {
    "flags": Target(command_lines(), run_command_line, 0.2),
    "recipes": Target(recipes(), run_recipe, 0.15),
    "data": Target(data_files(), run_data_file, 0.08),
    "templates": Target(templates(), run_template, 0.05),
    "models": Target(model_directories(), run_model, 0.03),
    "completions": Target(COMPLETIONS, run_completion, 0.42),
    "latex": Target(COMPLETIONS, run_latex, 0.02),
    "judge": Target(replies(), run_reply, 0.05),
}


def fuzz(target: Target, cases: int, first_seed: int, directory: Path) -> Tally:
    """Try so many cases. Raises what the smallest failing one raises."""
    tally = Tally()

    @seed(first_seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(target.inputs)
    def one(case: Any) -> None:
        check(lambda: target.run(case, directory), directory, tally)

    one()
    return tally


def main() -> int:
    """Fuzz the targets and tell of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--cases", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.dont_write_bytecode = True
    whole = sum(TARGETS[name].share for name in options.targets)
    total, failed = 0, []
    for name in options.targets:
        target, begin = TARGETS[name], time.monotonic()
        with tempfile.TemporaryDirectory() as directory:
            try:
                tally = fuzz(target, round(options.cases * target.share / whole), options.seed, Path(directory))
            except (Exception, Hang) as error:  # noqa: BLE001 - whatever a target raises is what is looked for
                failed.append(name)
                for line in "".join(traceback.format_exception(error)).splitlines():
                    print(line[:_LONGEST_LINE])
                print(f"{name}: FAILED after {time.monotonic() - begin:.0f} s", flush=True)
                continue
        total += tally.cases
        print(
            f"{name}: {tally.cases} cases, {tally.refused} refused in one line, slowest {tally.slowest_seconds:.2f} s, "
            f"{time.monotonic() - begin:.0f} s in all",
            flush=True,
        )
    print(f"{total} cases kept the promises" + (f"; FAILED: {', '.join(failed)}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
