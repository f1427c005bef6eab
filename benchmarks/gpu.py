"""What only a GPU can show, in at most eight minutes: correctness, then speed and memory at LLaDA-8B's shape.

    python benchmarks/gpu.py                                # `make check-gpu`; writes gpu.json and gpu.md
    python benchmarks/gpu.py --llada DIR --d1 DIR           # LLaDA's generate.py and d1's update beside ours
    python benchmarks/gpu.py --dry-run                      # every part on the CPU, tiny: what the tests run

Weights are random. Each part is tried by itself: what fails or no longer fits the time is told in its place. Exit code
1 where a part failed or a check does not hold, 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MINUTES = 8.0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llada", type=Path, metavar="DIR", help="checkout of LLaDA")
    parser.add_argument("--d1", type=Path, metavar="DIR", help="checkout of d1")
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), metavar="DIR", help="for gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no part begins that may end later")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with a tiny network")
    return parser.parse_args()


@dataclass(kw_only=True)
class Session:
    """Parts run one after another, their results by name, written after each."""

    output: Path
    seconds: float
    setting: dict[str, Any]
    start: float = field(default_factory=time.monotonic)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.start)

    def part(self, name: str, most: float, work: Callable[[], dict[str, Any]]) -> bool:
        """Do a part that takes `most` seconds at the most; whether it was done."""
        begun = time.monotonic()
        if self.left < most:
            self.parts[name] = {"skipped": f"{self.left:.0f} s left, {most:.0f} may be needed"}
        else:
            try:
                self.parts[name] = work()
            except Exception as error:  # noqa: BLE001 - of any kind: the other parts go on
                traceback.print_exc()
                self.parts[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        self.parts[name]["took_s"] = round(time.monotonic() - begun, 2)
        print(f"{name}: {json.dumps(self.parts[name])}", flush=True)  # noqa: T201
        self._write()
        return "skipped" not in self.parts[name] and "failed" not in self.parts[name]

    @property
    def faults(self) -> list[str]:
        """Parts that failed, and checks that do not hold."""
        failed = [name for name, part in self.parts.items() if "failed" in part]
        checks = self.parts.get("correctness", {}).get("checks", {})
        return failed + [name for name, holds in checks.items() if holds is not True]

    def _write(self) -> None:
        from gpu_table import markdown

        self.output.mkdir(parents=True, exist_ok=True)
        whole = {"setting": self.setting, "parts": self.parts, "faults": self.faults}
        (self.output / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")
        (self.output / "gpu.md").write_text(markdown(self.setting, self.parts))


def main() -> int:
    """Exit code: 0 where everything was done and holds."""
    options = _options()
    sys.path[:0] = [str(ROOT / "tests" / "gpu"), str(ROOT / "tests")]
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        print("no CUDA device: give --dry-run to try every part on the CPU", file=sys.stderr)  # noqa: T201
        return 2
    import gpu_parts
    from gpu_sizes import DRY, LLADA_8B

    sizes = DRY if options.dry_run else LLADA_8B
    session = Session(output=options.output, seconds=60 * options.minutes, setting=gpu_parts.setting(sizes))
    session.part("correctness", 150, lambda: gpu_parts.correctness(sizes))
    bench = gpu_parts.Bench(sizes)
    if session.part("network", 60, bench.build):
        _measure(session, bench, options.llada, options.d1)
    for fault in session.faults:
        print(f"FAILED: {fault}", file=sys.stderr)  # noqa: T201
    print(f"{options.output}/gpu.json, gpu.md: {60 * options.minutes - session.left:.0f} s")  # noqa: T201
    return int(bool(session.faults))


def _measure(session: Session, bench: Any, llada: Path | None, d1: Path | None) -> None:
    """The figures, the dearest to do without last."""
    rows = bench.sizes.rows
    session.part("update", 30, bench.update)
    if d1 is not None:
        session.part("update, d1", 30, lambda: bench.d1_update(d1))
    for count in rows:
        session.part(f"rollout of {count}, eager", 60, lambda count=count: bench.rollout(count))
    if llada is not None:
        session.part(f"rollout of {rows[1]}, LLaDA's generate.py", 60, lambda: bench.llada_rollout(llada, rows[1]))
    for way, install in bench.ways.items():
        if session.part(f"layers {way}", 30, install):
            for count in rows:
                session.part(f"rollout of {count}, {way}", 90, lambda count=count: bench.rollout(count))


if __name__ == "__main__":
    sys.exit(main())
