"""The `unmask` command: flags from settings. Help and argument errors come without importing torch."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from unmask import __version__
from unmask.cli import commands
from unmask.errors import UserError
from unmask.settings.commands import (
    EvaluateSettings,
    OracleSettings,
    PlanSettings,
    PretrainRecipe,
    SampleSettings,
)
from unmask.settings.reader import Document, Leaf, build, leaves, override, read_recipe, recipe_names
from unmask.settings.recipe import Recipe
from unmask.validation import did_you_mean

_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class NoSettings:
    """Of a command that has arguments alone."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand: its settings, what it does with them, and the arguments beside them."""

    settings: type = NoSettings
    run: Callable[[Any, argparse.Namespace], None]
    summary: str
    example: str
    arguments: tuple[tuple[str, str], ...] = ()  # flag, or name of what is given without one, and help
    switches: tuple[tuple[str, str], ...] = ()  # flag without value, and help
    default_recipe: str | None = None


COMMANDS = {
    "train": Command(
        settings=Recipe,
        run=commands.train,
        summary="improve a model by reinforcement learning",
        example="unmask train --recipe sudoku-mdpo --train.seed 1",
        arguments=(
            ("--recipe", "name of a shipped recipe, or a .toml file: {recipes} (default: sudoku-dispo)"),
            ("--output", "directory of the run (default: runs/RECIPE-NNN)"),
            ("--resume", "directory of a run to continue; its own recipe.toml holds"),
        ),
        default_recipe="sudoku-dispo",
    ),
    "sample": Command(
        settings=SampleSettings,
        run=commands.sample,
        summary="show how a model fills one completion, step by step",
        example="unmask sample --model runs/sudoku-dispo-001/checkpoints/step_000300 --item 3",
        arguments=(("--prompt", "text to complete (default: a held-out item of the task)"),),
    ),
    "evaluate": Command(
        settings=EvaluateSettings,
        run=commands.evaluate,
        summary="measure a model on held-out items, by unmasking rule and number of steps",
        example="unmask evaluate --steps 4,16 --unmasking low_confidence,rcr",
        arguments=(("--output", "file for the same figures as JSON"),),
    ),
    "pretrain": Command(
        settings=PretrainRecipe,
        run=commands.pretrain,
        summary="train a small base model from scratch, supervised",
        example="unmask pretrain --recipe pretrain-sudoku --output models/sudoku",
        arguments=(
            ("--recipe", "name of a shipped recipe, or a .toml file: {recipes} (default: pretrain-sudoku)"),
            ("--output", "directory of the model (required)"),
        ),
        default_recipe="pretrain-sudoku",
    ),
    "convert": Command(
        run=commands.convert,
        summary="make a masked diffusion model of an autoregressive checkpoint, to be trained with pretrain",
        example="unmask convert --model models/SmolLM2-135M --output models/smollm2-diffusion",
        arguments=(
            ("--model", "directory of the checkpoint, in the layout of transformers (required)"),
            ("--output", "directory of the new model (required)"),
            ("--mask-token", "token of its tokenizer to use as mask (default: one is added)"),
        ),
    ),
    "plan": Command(
        settings=PlanSettings,
        run=commands.plan,
        summary="predict memory, forwards, FLOPs and time of a recipe on GPUs, before it is run",
        example="unmask plan gsm8k-llada8b-dispo --gpus 8x80GB --gpu h100",
        arguments=(("recipe", "name of a shipped recipe, or a .toml file: {recipes} (default: sudoku-dispo)"),),
        switches=(("--all-methods", "compare the costs of all methods with these settings"),),
        default_recipe="sudoku-dispo",
    ),
    "oracle": Command(
        settings=OracleSettings,
        run=commands.oracle,
        summary="measure every method's gradient against the exact one, on a toy that can be enumerated",
        example="unmask oracle --groups 600 --scale 2",
    ),
    "methods": Command(
        run=commands.methods,
        summary="list the methods and what each is made of, or tell all about one",
        example="unmask methods mdpo",
        arguments=(("name", "method to tell all about (default: a table of all methods)"),),
        switches=(("--markdown", "print Markdown: docs/methods.md is made so"),),
    ),
}


class _Parser(argparse.ArgumentParser):
    """Argument errors as UserError: one line, no usage block."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, or 2 after an error that the user can mend, or 130 after Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"unmask: error: {error}", file=sys.stderr)  # noqa: T201
        return _EXIT_USAGE
    except KeyboardInterrupt:
        print("unmask: interrupted; `unmask train --resume DIR` goes on from the newest checkpoint", file=sys.stderr)  # noqa: T201
        return _EXIT_INTERRUPTED


def _dispatch(words: list[str]) -> int:
    parser = _Parser(
        prog="unmask",
        description="Reinforcement-learning post-training of masked diffusion language models.",
        epilog="Each command has its own --help. Start with: unmask train",
    )
    parser.add_argument("--version", action="version", version=f"unmask {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.summary, add_help=False)
    if not words or words[0] in ("-h", "--help"):
        parser.print_help()
        return 0
    if words[0].startswith("-"):
        parser.parse_args(words)
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command {words[0]!r}{did_you_mean(words[0], list(COMMANDS))}")
    command = COMMANDS[words[0]]
    settings, options = parse(words[0], command, words[1:])
    command.run(settings, options)
    return 0


def parse(name: str, command: Command, words: list[str]) -> tuple[Any, argparse.Namespace]:
    """Settings and options of a command line: defaults < recipe < flags. Raises UserError."""
    recipe = _recipe_named(command, words) or command.default_recipe
    document: Document = read_recipe(recipe) if recipe is not None else {}
    # A flag that names a choice (--method mdpo) decides which further flags there are.
    for _ in range(2):
        for leaf in list(leaves(build(command.settings, document))):
            if leaf.kind == "name" and (value := _flag_value(words, _flag(leaf))) is not None:
                override(document, leaf, value)
    settings: Any = build(command.settings, document)
    known = list(leaves(settings))
    options, unknown = _parser(name, command, known).parse_known_args(words)
    if unknown:
        flags = [flag for flag, _ in (*command.arguments, *command.switches) if flag.startswith("-")]
        flags += [_flag(leaf) for leaf in known]
        raise UserError(f"unknown argument {unknown[0]!r}{did_you_mean(unknown[0].split('=')[0], flags)}")
    for leaf in known:
        if leaf.kind != "name" and leaf.path in options:
            override(document, leaf, getattr(options, leaf.path))
    return build(command.settings, document), options


def _parser(name: str, command: Command, known: list[Leaf]) -> _Parser:
    parser = _Parser(
        prog=f"unmask {name}",
        description=command.summary.capitalize() + ".",
        epilog=f"example: {command.example}",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
        allow_abbrev=False,
        usage=f"unmask {name} [--SETTING VALUE ...]" if known else None,
    )
    recipes = ", ".join(recipe_names(name))
    for flag, text in command.arguments:
        count = None if flag.startswith("-") else "?"
        parser.add_argument(flag, nargs=count, metavar=flag.strip("-").upper(), help=text.format(recipes=recipes))
    for flag, text in command.switches:
        parser.add_argument(flag, action="store_true", help=text)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for leaf in known:
        section = leaf.path.partition(".")[0] if "." in leaf.path or leaf.kind == "name" else "settings"
        group = groups.setdefault(
            section, parser.add_argument_group(section) if section not in groups else groups[section]
        )
        default = "unset" if leaf.default is None else leaf.default
        group.add_argument(
            _flag(leaf),
            dest=leaf.path,
            default=argparse.SUPPRESS,
            metavar=leaf.kind.partition(" ")[0].upper(),
            help=f"{leaf.help} (default: {default})".replace("%", "%%").strip(),
        )
    return parser


def _recipe_named(command: Command, words: Sequence[str]) -> str | None:
    """The recipe of a command line: its first word where the command takes one so, else the flag's value."""
    takes_word = any(name == "recipe" for name, _ in command.arguments)
    if takes_word:
        return words[0] if words and not words[0].startswith("-") else None
    return _flag_value(words, "--recipe")


def _flag(leaf: Leaf) -> str:
    return "--" + leaf.path.replace("_", "-")


def _flag_value(words: Sequence[str], flag: str) -> str | None:
    """The last value of a flag, written `--flag value` or `--flag=value`."""
    values = [word.partition("=")[2] for word in words if word.startswith(flag + "=")]
    values += [words[place + 1] for place, word in enumerate(words[:-1]) if word == flag]
    return values[-1] if values else None
