"""Count on how many of math-verify's own test cases task `dataset` (answer_kind latex) gives their verdict.

    git clone https://github.com/huggingface/Math-Verify
    python tools/check_math_verify.py Math-Verify [--seconds 10]

Prints each difference, then `agrees on N of M`. Cases of tests/test_yujianll.py are left out: some of them pin faults.
docs/scoring.md names the differences that are left.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unmask.verifiers.formulas import declared_formula, stated_formula
from unmask.verifiers.latex import Checker


@dataclass
class Cases:
    """A pytest plugin that collects gold, prediction and verdict of every case."""

    found: list[tuple[str, str, bool]] = field(default_factory=list)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            case = getattr(getattr(item, "callspec", None), "params", {})
            if {"gold", "pred", "expected"} <= case.keys():
                self.found.append((case["gold"], case["pred"], bool(case["expected"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, help="a clone of huggingface/Math-Verify")
    parser.add_argument(
        "--seconds", type=float, default=10, help="for one comparison, so that a busy machine changes none"
    )
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.clone))
    cases = Cases()
    # Their values of `expected` are 0 and 1; tests with other parameters compare something else.
    pytest.main(["--collect-only", "-qq", "-p", "no:cacheprovider", str(arguments.clone / "tests")], plugins=[cases])
    pairs = [(declared_formula(gold) or gold, stated_formula(prediction)) for gold, prediction, _ in cases.found]
    checker = Checker(seconds=arguments.seconds)
    verdicts = checker.same(pairs)
    checker.close()
    for (gold, prediction, wanted), pair, verdict in zip(cases.found, pairs, verdicts, strict=True):
        if verdict is not wanted:
            print(f"{verdict} for {wanted}: {gold[-80:]!r} and {prediction[-80:]!r}, compared as {pair}")
    agreed = sum(verdict is wanted for (*_, wanted), verdict in zip(cases.found, verdicts, strict=True))
    print(f"agrees on {agreed} of {len(cases.found)}")


if __name__ == "__main__":
    main()
