"""Do the tests notice? Flip operators of the pure pieces one at a time and run the fast tests against each.

    python tools/mutants.py [--count 100] [--seed 0] [--workers 2]

Prints every mutant that survives, then `caught N of M`; exit code 1 when fewer than 90 % are caught.
A mutant is caught when a test fails, the package cannot be imported, or the tests take three times as long.
Each runs in a fork of one process that has already imported the heavy libraries, against a directory of links
to the package in which one file is replaced.
"""

from __future__ import annotations

import argparse
import ast
import copy
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "src" / "unmask"
# Files, and the tests that are run first against their mutants.
MUTATED = {
    "objective/masks/base.py": ("objective/test_mask_base.py", "objective/test_random_masks.py"),
    "objective/masks/random.py": ("objective/test_random_masks.py",),
    "objective/masks/blocks.py": ("objective/test_trajectory_masks.py",),
    "objective/masks/pairs.py": ("objective/test_random_masks.py",),
    "objective/masks/trajectory.py": ("objective/test_trajectory_masks.py",),
    "objective/masks/recorded.py": ("objective/test_recorded_masks.py",),
    "objective/advantages.py": ("objective/test_advantages.py",),
    "objective/likelihood.py": ("objective/test_likelihood.py",),
    "objective/losses.py": ("objective/test_losses.py",),
    "objective/divergences.py": ("objective/test_losses.py",),
    "sampling/unmasking.py": ("sampling/test_unmasking.py",),
    "sampling/schedules.py": ("sampling/test_unmasking.py",),
}
# Without the conformance suite, which is slow: what is caught here is caught by the tests of the pieces.
TESTS = (
    *("tests/objective", "tests/methods", "tests/oracle/test_enumerated_toy.py"),
    *("tests/sampling/test_unmasking.py", "tests/sampling/test_reference_samplers.py"),
    "--ignore=tests/methods/test_conformance.py",
)
PATIENCE = 3  # times the tests' own time
SUFFICIENT = 0.9

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES = {"min": "max", "minimum": "maximum", "amin": "amax", "argmin": "argmax"}
NAMES |= {other: name for name, other in NAMES.items()}


@dataclass(frozen=True)
class Mutant:
    """One change of one file."""

    file: str
    line: int
    before: str
    after: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.before}  →  {self.after}"


def changed(node: ast.AST) -> Iterator[ast.AST]:  # noqa: C901 (a table of cases)
    """What a node may be replaced by."""
    match node:
        case ast.Compare(ops=[operator]):
            for flipped in COMPARISONS[type(operator)]:
                yield _with(node, ops=[flipped()])
        case ast.BinOp(op=operator) if type(operator) in OPERATORS:
            yield _with(node, op=OPERATORS[type(operator)]())
        case ast.BoolOp(op=operator):
            yield _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub()):
            yield node.operand
        case ast.Constant(value=value) if type(value) in (int, float) and value in (0, 1):
            yield _with(node, value=type(value)(1 - value))
        case ast.Attribute(attr=name) if name in NAMES:
            yield _with(node, attr=NAMES[name])
        case ast.Name(id=name) if name in NAMES:
            yield _with(node, id=NAMES[name])
        case ast.keyword(arg=name) if name in NAMES:
            yield _with(node, arg=NAMES[name])
        case ast.keyword(arg="descending", value=ast.Constant(value=bool(value))):
            yield _with(node, value=ast.Constant(value=not value))
        case ast.Slice():
            for name in ("lower", "upper"):
                if (bound := getattr(node, name)) is not None:
                    for operator in (ast.Add(), ast.Sub()):
                        yield _with(node, **{name: ast.BinOp(left=bound, op=operator, right=ast.Constant(value=1))})


def _with(node: ast.AST, **fields: object) -> ast.AST:
    twin = copy.copy(node)
    for name, value in fields.items():
        setattr(twin, name, value)
    return twin


def places(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every (parent, field, index, node) that runs: no annotations, no error texts, no type aliases."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns") or isinstance(node, ast.Raise | ast.JoinedStr):
            continue
        children = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, child in children:
            if isinstance(child, ast.AST) and not _is_type_alias(child):
                yield node, field, index, child
                yield from places(child)


def _is_type_alias(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Subscript)
        and ast.unparse(node.value.value) == "Callable"
    )


def mutants_of(name: str) -> Iterator[Mutant]:
    """Every mutant of a file."""
    tree = ast.parse((PACKAGE / name).read_text())
    line = 0
    for parent, field, index, node in places(tree):
        line = getattr(node, "lineno", line)
        for replacement in changed(node):
            before, after = ast.unparse(node), ast.unparse(replacement)
            if isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.USub) and isinstance(node, ast.Constant):
                continue  # the sign itself is dropped already
            _put(parent, field, index, replacement)
            yield Mutant(file=name, line=line, before=before, after=after, source=ast.unparse(tree))
            _put(parent, field, index, node)


def _put(parent: ast.AST, field: str, index: int | None, node: ast.AST) -> None:
    if index is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[index] = node


def link_package(directory: Path, mutant: Mutant | None) -> None:
    """A package of links in `directory`, the mutant's file replaced."""
    for entry in sorted(PACKAGE.rglob("*")):
        if entry.is_file() and entry.parent.name != "__pycache__":
            place = directory / "unmask" / entry.relative_to(PACKAGE)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(entry)
    if mutant is not None:
        replaced = directory / "unmask" / mutant.file
        replaced.unlink()
        replaced.write_text(mutant.source)


def start(mutant: Mutant | None, directory: Path) -> int:
    """Fork a child that runs the tests against the mutant; its exit code is 0 when all pass."""
    link_package(directory, mutant)
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os.chdir(REPOSITORY)
        sys.dont_write_bytecode = True
        sys.path.insert(0, str(directory))
        import pytest

        import unmask

        if str(directory) in str(unmask.__file__):
            options = ["-x", "-q", "-p", "no:cacheprovider", "--assert=plain"]
            first = [f"tests/{name}" for name in MUTATED[mutant.file]] if mutant else []
            rest = [*TESTS, *(f"--ignore={name}" for name in first)]
            code = int(any(pytest.main([*options, *tests]) for tests in (first, rest) if tests))
    finally:
        os._exit(code)


def warm_up() -> None:
    """Import what every child needs, once."""
    import beartype
    import hypothesis
    import jaxtyping
    import pytest
    import torch
    from transformers import LlamaForCausalLM

    del beartype, hypothesis, jaxtyping, pytest, LlamaForCausalLM
    torch.set_num_threads(1)


def run(mutants: list[Mutant | None], workers: int, seconds: float) -> Iterator[tuple[Mutant | None, bool]]:
    """Each mutant with whether the tests failed or took longer than `seconds`, as they finish."""
    waiting, running = list(mutants), {}
    with tempfile.TemporaryDirectory() as root:
        while waiting or running:
            while waiting and len(running) < workers:
                mutant = waiting.pop(0)
                directory = Path(tempfile.mkdtemp(dir=root))
                running[start(mutant, directory)] = (mutant, time.monotonic() + seconds)
            time.sleep(0.05)
            for child, (mutant, deadline) in list(running.items()):
                if time.monotonic() > deadline:
                    os.kill(child, signal.SIGKILL)
                finished, status = os.waitpid(child, os.WNOHANG)
                if finished:
                    del running[child]
                    yield mutant, os.waitstatus_to_exitcode(status) != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="mutants to try, drawn at random from all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    options = parser.parse_args()
    everything = [mutant for name in MUTATED for mutant in mutants_of(name)]
    chosen = random.Random(options.seed).sample(everything, min(options.count, len(everything)))  # noqa: S311
    warm_up()
    began = time.monotonic()
    if any(failed for _, failed in run([None], 1, float("inf"))):
        print("the tests fail without any mutant: mend that first")
        return 1
    alone = time.monotonic() - began
    print(f"{len(chosen)} of {len(everything)} mutants, {alone:.0f} s for the tests alone", flush=True)
    caught = 0
    for mutant, failed in run(list(chosen), options.workers, PATIENCE * alone):
        caught += failed
        if not failed:
            print(f"survived  {mutant}", flush=True)
    print(f"caught {caught} of {len(chosen)} in {time.monotonic() - began:.0f} s")
    return 0 if caught >= SUFFICIENT * len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
