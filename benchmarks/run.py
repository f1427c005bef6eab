"""Our sampler and update beside published code, or beside a plain implementation: times, equality, memory, bars.

    python benchmarks/run.py                                   # the short form, against benchmarks/plain.py
    python benchmarks/run.py --llada DIR --d1 DIR --fast-dllm DIR --mdpo DIR --spg DIR --dllm-rl DIR

Each DIR is a checkout of the code of that name. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import allocator

_PEERS = ("llada", "d1", "fast-dllm", "mdpo", "spg", "dllm-rl")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in _PEERS:
        parser.add_argument(f"--{peer}", type=Path, metavar="DIR", help=f"checkout of {peer}")
    parser.add_argument("--rounds", type=int, default=2, help="rounds after the warm-up")
    parser.add_argument("--only", default="", metavar="NAME", help="only the cases whose name contains this")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    parser.add_argument("--memory-of", metavar="CASE::VARIANT", help="print the extra memory of one call, in MB")
    return parser.parse_args()


def _checkout_arguments(options: argparse.Namespace) -> list[str]:
    given = {peer: getattr(options, peer.replace("-", "_")) for peer in _PEERS}
    return [part for peer, path in given.items() if path is not None for part in (f"--{peer}", str(path))]


def main() -> int:
    """Exit code: 0 where all bars are reached, 1 where one is missed, 2 where there is nothing to run."""
    options = _options()
    allocator.tune()
    from rich.console import Console

    from peers import Checkouts
    from session import cases_of, memory_of, run
    from table import show, write_markdown
    from unmask.errors import UserError

    console = Console(width=None if sys.stdout.isatty() else 180)
    arguments = _checkout_arguments(options)
    try:
        given = {peer.replace("-", "_"): getattr(options, peer.replace("-", "_")) for peer in _PEERS}
        if arguments and None in given.values():
            missing = ", ".join(f"--{peer}" for peer in _PEERS if given[peer.replace("-", "_")] is None)
            raise UserError(f"{missing} not given: the full run compares with all six, the short form with none")
        cases = cases_of(Checkouts(**given) if arguments else None)
        if options.memory_of:
            console.print(memory_of(cases, options.memory_of))
            return 0
        cases = {name: build for name, build in cases.items() if options.only in name}
        if not cases:
            raise UserError(f"--only {options.only!r} is in the name of no case: leave it out to see all")
        rows = run(cases, options.rounds, arguments, console)
    except UserError as error:
        console.print(f"error: {error}", style="red")
        return 2
    show(rows, console)
    if options.markdown:
        write_markdown(rows, options.markdown, options.rounds)
    return int(any(row.missed for row in rows))


if __name__ == "__main__":
    sys.exit(main())
