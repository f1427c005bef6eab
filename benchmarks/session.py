"""A run of the benchmark: which cases, their times, their checks, their memory."""

from __future__ import annotations

import gc
import time

import torch
from rich.console import Console

import rollouts
import updates
from core import Build, Case, compare, extra_megabytes, extra_megabytes_elsewhere
from peers import Checkouts
from table import Row, judge

_SEPARATOR = "::"  # between case and variant


def cases_of(peers: Checkouts | None) -> dict[str, Build]:
    """All cases; without published code, the short form."""
    if peers is None:
        return rollouts.plain_cases() | updates.plain_cases()
    return rollouts.peer_cases(peers) | updates.peer_cases(peers)


def run(cases: dict[str, Build], rounds: int, arguments: list[str], console: Console) -> list[Row]:
    """All rows; `arguments` let a fresh process find the same cases."""
    rows: list[Row] = []
    for name, build in cases.items():
        start = time.monotonic()
        case = build(False)
        timed = compare(case.calls, case.checked, rounds)
        for comparison in case.comparisons:
            verdict = None if comparison.equal is None else comparison.equal(timed.outputs)
            memory = {}
            if comparison.reads_memory:
                memory = {
                    variant: case.megabytes(case.calls[variant])
                    if case.megabytes is not None
                    else extra_megabytes_elsewhere(arguments, f"{name}{_SEPARATOR}{variant}")
                    for variant in (comparison.variant, comparison.baseline)
                }
            rows.append(judge(name, comparison, timed, verdict, memory))
        del case, timed
        gc.collect()
        console.print(f"{name}: {time.monotonic() - start:.0f} s", style="dim")
    return rows


def memory_of(cases: dict[str, Build], name: str) -> float:
    """Extra memory in MB of CASE::VARIANT; a call before it has filled what is kept."""
    case_name, variant = name.split(_SEPARATOR)
    torch.set_num_threads(1)
    case: Case = cases[case_name](True)
    case.calls[variant]()
    gc.collect()
    return extra_megabytes(case.calls[variant])
