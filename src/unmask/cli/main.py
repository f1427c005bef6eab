"""The `unmask` command: flags from settings. Help and argument errors come without importing torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from functools import reduce
from itertools import chain, cycle
from typing import Any

from unmask.cli import completion
from unmask.cli.first_word import before_torch
from unmask.cli.pipes import discard_output, output_is_unread
from unmask.cli.signals import terminated_as_interrupted
from unmask.cli.subcommands import COMMANDS, Command
from unmask.cli.version import print_version
from unmask.errors import Terminated, UserError
from unmask.report.progress import Progress, phase, telling
from unmask.settings.idle import (
    check_read,
    check_values_read,
    declared_idle,
    flat,
    without_idle,
)
from unmask.settings.objects import check_no_objects
from unmask.settings.reader import Document, build, document_of, flag_of, leaves, merged, nested
from unmask.settings.recipe_files import recipe_layers
from unmask.settings.resume import check_unchanged, locate_run
from unmask.settings.starting import (
    check_agreement,
    check_one_name,
    names_the_job,
    task_is_missing,
    with_model_and_task,
)
from unmask.validation import did_you_mean, near, other_names

_EXIT_USERS_ERROR = 1  # as of a process that an exception ends
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_EXIT_TERMINATED = 143  # as of a process that SIGTERM ends
_EXIT_BROKEN_PIPE = 141  # as of a process that SIGPIPE ends
_HELP = {"-h", "--help"}
_BETWEEN = "\0"  # words of a repeated argument, none of which can hold it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (default: the process's own); the exit code.

    0; 1 after an exception in the user's own code; 2 after a UserError; 130 after Ctrl-C; 143 after SIGTERM; 141 where
    nobody reads the output any more (`unmask methods | head -1`).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with terminated_as_interrupted():
            _dispatch(words)
        sys.stdout.flush()
        return 0
    except UserError as error:
        _say_error(f"unmask: error: {error}")
        return _EXIT_USAGE
    except SystemExit as error:  # of a task, method or rule of the user's: a command that is not done has not succeeded
        raise RuntimeError(f"sys.exit({error.code!r}) was called before unmask {words[0]} was done") from error
    except KeyboardInterrupt as interrupt:
        if interrupt.args or os.environ.get("RANK", "0") == "0":  # of ranks, which end together, the first says it
            _say_error("; ".join(["unmask: interrupted", *map(str, interrupt.args)]))
        return _EXIT_TERMINATED if isinstance(interrupt, Terminated) else _EXIT_INTERRUPTED
    except BrokenPipeError:
        if not output_is_unread():
            raise  # another pipe
        discard_output()
        return _EXIT_BROKEN_PIPE
    except Exception as error:
        from unmask.cli.users_errors import users_traceback

        if (told := users_traceback(error)) is None:
            raise
        print(told, end="", file=sys.stderr)  # noqa: T201
        return _EXIT_USERS_ERROR


def _say_error(line: str) -> None:
    """Write a line at once: where several ranks write, the ends of lines would else stand behind those of others."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in _HELP:
        print(_overview().format_help(), end="")  # noqa: T201  (print_help hides a broken pipe)
        return
    if words[0] in _TELLING:
        _TELLING[words[0]](words[1:])
        return
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command {words[0]!r}{did_you_mean(words[0], COMMANDS)}")
    name, command = words[0], COMMANDS[words[0]]
    for_help = bool(_HELP & set(words[1:]))
    given = [word for word in words[1:] if word not in _HELP]
    if for_help:
        settings, _ = parse(name, command, given, for_help=True)
        print(_help(name, command, settings).format_help(), end="")  # noqa: T201
        return
    if not command.on_ranks and (ranks := os.environ.get("WORLD_SIZE", "1")) != "1":
        raise UserError(f"unmask {name} is of one process, and WORLD_SIZE is {ranks}: start it without torchrun")
    aside = not command.logs and sys.stderr.isatty() and not sys.stdout.isatty()
    with telling(Progress(aside=aside)):
        with ExitStack() as stack, before_torch(lambda: stack.enter_context(phase(f"unmask {name}: starting"))):
            settings, options = parse(name, command, given)  # which imports the user's own classes
        command.run(settings, options)


def _print_script(words: list[str]) -> None:
    print(completion.script(words), end="")  # noqa: T201


def _print_offered(words: list[str]) -> None:
    for word in completion.offered(" ".join(words), COMMANDS, parse):
        print(word)  # noqa: T201


_TELLING: dict[str, Callable[[list[str]], None]] = {
    "--version": print_version,
    "--completion": _print_script,
    "--complete": _print_offered,  # what the scripts ask
}


def parse(name: str, command: Command, words: list[str], *, for_help: bool = False) -> tuple[Any, argparse.Namespace]:
    """Settings (base recipe < recipe < flags) and options of a command line, the command's name left out.

    `for_help`: settings need not agree with one another, nor be complete. Raises UserError.
    """
    given = _given(name, command, words)
    options: dict[str, Any] = {_key(argument): given.pop(argument, None) for argument, _ in command.arguments}
    options |= {name: options[name].split(_BETWEEN) if options[name] else [] for name in command.repeated}
    options |= {_key(switch): given.pop(switch, None) is not None for switch, _ in command.switches}
    resume = options.get("resume")
    if resume is not None and options["recipe"] is not None:
        raise UserError("--recipe is given with --resume: a run goes on with its own recipe, leave --recipe out")
    recipe = str(locate_run(resume)[0] / "recipe.toml") if resume else options.get("recipe")
    flags = nested({_key(flag): text for flag, text in given.items()})
    options["names_the_job"] = names_the_job(flags)
    if recipe is None and not options["names_the_job"]:
        recipe = command.default_recipe
    layers = [{}] if recipe is None else recipe_layers(recipe)
    for layer in layers:
        check_no_objects(flat(layer), str(recipe))
    needs_model = not for_help and any(field.name == "model" and field.default for field in fields(command.settings))
    document = with_model_and_task(reduce(merged, layers), flags, needs_model=needs_model)
    options["task_is_missing"] = task_is_missing(merged(document, flags))
    stored: Any = build(command.settings, document)
    settings: Any = build(command.settings, merged(document_of(stored), flags))
    for layer in (*map(flat, layers), {_key(flag): text for flag, text in given.items()}):
        check_one_name(settings, layer)
    now = other_names(settings)
    paths = [now.get(_key(flag), _key(flag)) for flag in given]
    if resume:
        check_read(_idle(command, settings), paths)
        check_unchanged(stored, settings, str(recipe))
    elif not for_help:
        check_agreement(settings, paths)
        settings = _all_read(command, stored, settings, paths, layers[-1])
    return settings, argparse.Namespace(**options)


def _all_read(command: Command, stored: Any, settings: Any, flags: list[str], recipe: Document) -> Any:
    """The settings, those that flags or a base have made idle at their defaults.

    Raises UserError where one of the flags is idle, or what the recipe's own table says.
    """
    idle = _idle(command, settings)
    check_read(idle, flags)
    before = _idle(command, stored)
    check_values_read({path: reason for path, reason in idle.items() if path in before}, settings, recipe)
    return without_idle(settings, idle)


def _idle(command: Command, settings: Any) -> dict[str, str]:
    return {**declared_idle(settings), **command.idle(settings)}


def _key(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _given(name: str, command: Command, words: list[str]) -> dict[str, str]:
    """Text of each flag, `--flag value` or `--flag=value` (the last holds), and of each argument without a flag.

    What has no flag may be given by its name, too: `--recipe NAME`, as other commands take it.
    """
    own, switches = [argument for argument, _ in command.arguments], [switch for switch, _ in command.switches]
    named = {f"--{argument}": argument for argument in own if not argument.startswith("-")}
    places = chain(named.values(), cycle(command.repeated))
    given: dict[str, str] = {}
    rest = iter(words)
    for word in rest:
        flag, equals, text = word.partition("=") if word.startswith("--") else (next(places, word), "=", word)
        flag = named.get(flag, flag)
        if flag not in (*own, *switches):
            flag = _pointed(command, flag)
        if flag not in (*own, *switches) and not _is_setting(command, flag):
            raise _unknown(name, command, flag)
        if flag in switches and equals:
            raise UserError(f"{flag} is {text!r}: give it without a value")
        if flag not in switches and not equals:
            text = next(rest, "--")
            if text.startswith("--"):
                raise UserError(f"{flag} has no value: give one after it (see unmask {name} --help)")
        if not _is_unicode(text):
            raise UserError(f"{flag} is {text!r}: give text")
        given[flag] = _BETWEEN.join([given[flag], text]) if flag in command.repeated and flag in given else text
    return given


def _is_unicode(text: str) -> bool:
    """Whether a word of the command line, whose bytes may be any, can be written to files and terminals."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _unknown(name: str, command: Command, word: str) -> UserError:
    """What to say of a word that is no argument of the command and begins with no setting's name."""
    see = f"see unmask {name} --help"
    if not word.startswith("--"):
        return UserError(f"unmask {name} takes no argument {word!r}; {see}")
    own = [argument for argument, _ in (*command.arguments, *command.switches) if argument.startswith("--")]
    known = [flag.removeprefix("--") for flag in (*own, *(leaf.flag for leaf in leaves(command.settings())))]
    return UserError(f"unknown argument {word!r}{near(word.removeprefix('--'), known, '--') or f'; {see}'}")


def _pointed(command: Command, flag: str) -> str:
    """The flag with a point behind the name of its table, where a hyphen is as good: --reward-funcs, --reward.funcs."""
    tables = [field.name for field in fields(command.settings) if {"choices", "section"} & set(field.metadata)]
    table = next((name for name in map(flag_of, tables) if flag.startswith(f"{name}-")), None)
    return flag if table is None else f"{table}.{flag.removeprefix(f'{table}-')}"


def _is_setting(command: Command, flag: str) -> bool:
    """Whether a flag begins with the name, or old name, of one of the command's settings; `build` reads the rest."""
    names = [name for field in fields(command.settings) for name in (field.name, field.metadata.get("was")) if name]
    return flag.partition(".")[0] in map(flag_of, names) and "_" not in flag


# ---- help ----


def _overview() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unmask",
        description="Reinforcement-learning post-training of masked diffusion language models.",
        epilog="Each command has its own --help. Start with: unmask train",
    )
    parser.add_argument("--version", action="store_true", help="print the version; --verbose: the environment too")
    parser.add_argument("--completion", metavar="SHELL", help="print a script of completions for bash, zsh or fish")
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        subparsers.add_parser(name, help=command.summary, add_help=False)
    return parser


def _help(name: str, command: Command, settings: Any) -> argparse.ArgumentParser:
    known = list(leaves(settings))
    places = "".join(f"[{argument.upper()}] " for argument, _ in command.arguments if not argument.startswith("-"))
    parser = argparse.ArgumentParser(
        prog=f"unmask {name}",
        description=command.summary.capitalize() + ".",
        epilog=f"example: {command.example}",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=110),
        usage=f"unmask {name} {places}[--SETTING VALUE ...]" if known else None,
    )
    for flag, text in command.arguments:
        count = None if flag.startswith("-") else "*" if flag in command.repeated else "?"
        parser.add_argument(flag, nargs=count, metavar=flag.strip("-").upper(), help=text)
    for flag, text in command.switches:
        parser.add_argument(flag, action="store_true", help=text)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for leaf in known:
        title = leaf.path.partition(".")[0] if "." in leaf.path or leaf.kind == "name" else "settings"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = "unset" if leaf.default is None else leaf.default
        text = f"{leaf.help} (default: {default})".replace("%", "%%").strip()
        groups[title].add_argument(leaf.flag, metavar=leaf.kind.upper(), help=text)
    return parser
