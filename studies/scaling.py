"""How near to the machine's ceilings we come, and how cost grows with what: tables, two pictures, the numbers.

    python studies/scaling.py --output studies         # five to six minutes
    python studies/scaling.py --short --output /tmp   # under a minute: smaller, one round

Writes OUTPUT/roofline.png, OUTPUT/scaling.png and OUTPUT/performance-data.json. One thread, CPU time, medians.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import allocator

if TYPE_CHECKING:
    from rich.console import Console

    from roofline import Machine, Operation, Piece

# a side ("ours", "plain") and a size -> the call that is timed
Calls = Mapping[tuple[str, int], Callable[[], Any]]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Cost of one side along one size."""

    side: str
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]
    flops: tuple[float, ...]

    @property
    def exponent(self) -> float:
        """Of the seconds: least squares on logarithms."""
        return exponent(self.sizes, self.seconds)

    @property
    def flops_exponent(self) -> float:
        """Of the FLOPs, likewise."""
        return exponent(self.sizes, self.flops)

    @property
    def last_exponent(self) -> float:
        """Of the seconds, between the last two sizes."""
        return exponent(self.sizes[-2:], self.seconds[-2:])


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One size that grows while all others stay."""

    work: str  # rollout or update
    size: str
    fixed: str
    lines: tuple[Line, ...]


def exponent(sizes: tuple[int, ...], values: tuple[float, ...]) -> float:
    """Slope of the straight line through the logarithms."""
    x, y = ([math.log(value) for value in each] for each in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)


# ---- what is swept ----


def rollout_calls(sizes: Any, size: int, *, short: bool) -> Calls:
    """Our sampler and the plain one, temperature 1; the plain one in full runs, where the vocabulary is small."""
    import rollouts

    bench = rollouts.Bench(sizes, 1.0, brief=False)
    calls = {("ours", size): bench.ours()}
    if sizes.vocabulary <= 1 << 13 and not short:
        calls["plain", size] = bench.plain()
    return calls


def update_calls(sizes: Any, size: int, *, both: bool, short: bool) -> Calls:
    """Our update with a forward a sample, the plain one, and (`both`) ours with one forward for all samples."""
    import torch

    import plain
    import updates
    from batches import diffu_grpo_batch

    bench = updates.Bench(sizes)
    bench.advantage_N = torch.linspace(-1, 1, sizes.rows)
    batch = updates.fully_masked(bench, shared=False)
    calls = {("ours", size): bench.ours(diffu_grpo_batch(batch))}
    if both:
        shared = bench.ours(diffu_grpo_batch(updates.fully_masked(bench, shared=True)))
        calls["ours, one forward for the group", size] = shared
    if sizes.vocabulary <= 1 << 15 and not short:
        calls["plain", size] = bench.theirs(partial(plain.update_loss, bench.network, batch, 0.5))
    return calls


def sweeps(rounds: int, *, short: bool) -> Iterator[Sweep]:
    """All of them; a short run is smaller by a factor of two or four throughout."""
    from dataclasses import replace

    from toy import Sizes

    few = 4 if short else 1
    rollout = Sizes(vocabulary=2_048, rows=1 if short else 4, prompt=16, completion=64, steps=8 if short else 16)
    update = Sizes(vocabulary=2_048, rows=1 if short else 4, prompt=16, completion=64)
    vocabularies = [1 << (n - (2 if short else 0)) for n in (11, 13, 15, 17)]
    for size, field, values in (
        ("rows", "rows", [1, 2, 4, 8]),
        ("completion tokens", "completion", [32, 64, 128, 256]),
        ("denoising steps", "steps", [2, 4, 8, 16] if short else [4, 8, 16, 32]),
        ("vocabulary", "vocabulary", vocabularies),
    ):
        cases = {value: replace(rollout, **{field: value}) for value in values}
        yield _sweep(
            "rollout",
            size,
            rollout,
            field,
            {n: rollout_calls(each, n, short=short) for n, each in cases.items()},
            rounds,
        )
    for size, field, values in (
        ("samples of a group", "rows", [2, 4, 8, 16]),
        ("completion tokens", "completion", [value // few for value in (64, 128, 256, 512)]),
        ("vocabulary", "vocabulary", vocabularies),
    ):
        cases = {value: replace(update, **{field: value}) for value in values}
        both = field == "rows"
        calls = {n: update_calls(each, n, both=both, short=short) for n, each in cases.items()}
        yield _sweep("update", size, update, field, calls, rounds)


def _sweep(work: str, size: str, sizes: Any, field: str, cases: Mapping[int, Calls], rounds: int) -> Sweep:
    from core import compare
    from roofline import flops_of

    calls = {key: call for each in cases.values() for key, call in each.items()}
    names = {f"{side} {value}": call for (side, value), call in calls.items()}
    timed = compare(names, {name: partial(flops_of, call) for name, call in names.items()}, rounds)
    lines = []
    for side in dict.fromkeys(side for side, _ in calls):
        values = tuple(value for other, value in calls if other == side)
        found = [f"{side} {value}" for value in values]
        seconds = tuple(timed.typical(name) for name in found)
        lines.append(Line(side=side, sizes=values, seconds=seconds, flops=tuple(timed.outputs[name] for name in found)))
    used = ("vocabulary", "rows", "prompt", "completion", *(["steps"] if work == "rollout" else []))
    fixed = ", ".join(f"{name} {getattr(sizes, name):,}" for name in used if name != field)
    return Sweep(work=work, size=size, fixed=fixed, lines=tuple(lines))


# ---- what is said ----


def show_pieces(found: list[Piece], machine: Machine, console: Console) -> None:
    """The table against the machine, and each piece in parts."""
    from rich.table import Table

    table = Table(title=f"peak {machine.peak / 1e9:.1f} GFLOP/s, copy {machine.bandwidth / 1e9:.1f} GB/s")
    for heading in ("work", "GFLOP", "seconds", "at peak", "factor", "by round", "parts: seconds (factor)"):
        table.add_column(heading, justify="left" if heading in ("work", "parts: seconds (factor)") else "right")
    for piece in found:
        parts = []
        for part in piece.parts:
            factor = f" ({part.seconds * machine.peak / part.flops:.2f})" if part.flops else ""
            parts.append(f"{part.name} {part.seconds:.3f}{factor}")
        at_peak = f"{piece.flops / machine.peak:.3f}"
        numbers = [f"{piece.flops / 1e9:.1f}", f"{piece.seconds:.3f}", at_peak, f"{piece.factor(machine):.2f}"]
        numbers.append(f"{piece.by_round:.2f}")
        table.add_row(piece.name, *numbers, "; ".join(parts))
    console.print(table)


def show_operations(found: list[Operation], machine: Machine, console: Console) -> None:
    """What each operation reaches, and what the two ceilings allow it."""
    from rich.table import Table

    table = Table("operation", "FLOP/byte", "GFLOP/s", "allowed", "share")
    for each in found:
        allowed = machine.bound(each.intensity)
        numbers = [f"{each.intensity:.2f}", f"{each.rate / 1e9:.1f}", f"{allowed / 1e9:.1f}"]
        table.add_row(f"{each.kind}, {each.label}", *numbers, f"{each.rate / allowed:.0%}")
    console.print(table)


def show_sweeps(found: list[Sweep], console: Console) -> None:
    """The fitted exponents."""
    from rich.table import Table

    table = Table("work", "size", "side", "from", "to", "exponent", "of FLOPs", "at the end", "seconds")
    for sweep in found:
        for line in sweep.lines:
            ends = [f"{line.sizes[0]:,}", f"{line.sizes[-1]:,}"]
            grads = [f"{each:.2f}" for each in (line.exponent, line.flops_exponent, line.last_exponent)]
            seconds = " ".join(f"{each:.3g}" for each in line.seconds)
            table.add_row(sweep.work, sweep.size, line.side, *ends, *grads, seconds)
    console.print(table)


def _data(machine: Machine, found: list[Piece], points: list[Operation], swept: list[Sweep]) -> dict[str, Any]:
    import torch

    return {
        "torch": torch.__version__,
        "threads": 1,
        "machine": asdict(machine),
        "pieces": [asdict(piece) | {"factor": piece.factor(machine)} for piece in found],
        "operations": [asdict(point) for point in points],
        "sweeps": [
            asdict(sweep)
            | {
                "exponents": {
                    line.side: [line.exponent, line.flops_exponent, line.last_exponent] for line in sweep.lines
                }
            }
            for sweep in swept
        ],
    }


def main() -> None:
    """Measure, show, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where pictures and numbers go")
    parser.add_argument("--short", action="store_true", help="smaller, one round, under a minute")
    parser.add_argument("--redraw", action="store_true", help="draw again what OUTPUT/performance-data.json has")
    options = parser.parse_args()
    allocator.tune()
    import torch
    from rich.console import Console

    from pictures import draw
    from roofline import Ceilings, operations, pieces

    path = options.output / "performance-data.json"
    if not options.redraw:
        torch.set_num_threads(1)
        console = Console(width=180)
        ceilings, rounds = Ceilings(), 1 if options.short else 3
        found, points = pieces(rounds, ceilings, short=options.short), operations(1 if options.short else 9)
        show_pieces(found, machine := ceilings.machine, console)
        show_operations(points, machine, console)
        show_sweeps(swept := list(sweeps(1 if options.short else 2, short=options.short)), console)
        path.write_text(json.dumps(_data(machine, found, points, swept), indent=1) + "\n")
    draw(json.loads(path.read_text()), options.output)


if __name__ == "__main__":
    main()
