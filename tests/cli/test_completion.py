"""Completion: what may follow a line of words, and the scripts in the shells themselves."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from unmask import __version__
from unmask.cli.completion import SCRIPTS, offered
from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.methods import METHODS

LINES = [  # a line, and the words that may stand for its last one
    ("unmask tra", ["train"]),
    ("unmask train --method ", list(METHODS)),
    ("unmask train --method mdpo --method.step", ["--method.steps", "--method.step-choice"]),
    ("unmask train --method=mdpo --method.st", []),  # of the default method, which has none
    ("unmask train --train.four-bit=t", ["--train.four-bit=true"]),
    ("unmask evaluate --model embedded:s", ["embedded:sudoku"]),
    ("unmask plan sudoku-dif", ["sudoku-diffu-grpo"]),
    ("unmask plan sudoku-dispo --all", ["--all-methods"]),
    ("unmask plan --all-methods sudoku-dif", ["sudoku-diffu-grpo"]),
    ("unmask methods --m", ["--markdown"]),
    ("unmask pretrain --recipe pretrain-s", ["pretrain-sudoku"]),
    ("unmask train --output ", []),  # files, which the shell knows
    ("unmask nothing --", []),
    ('unmask train --chat.system "a b', []),
    ("unmask --completion z", ["zsh"]),
    ("unmask --version --v", ["--verbose"]),
]


@pytest.mark.parametrize(("line", "words"), LINES, ids=[line for line, _ in LINES])
def test_offered_words_follow_from_the_words_before(line, words):
    assert offered(line, COMMANDS, parse) == words


def test_offered_imports_no_file_that_the_line_names(tmp_path):
    """Nor that a recipe names, which the line does."""
    own = tmp_path / "own.py"
    own.write_text("raise SystemExit('imported')\n")
    recipe = tmp_path / "own.toml"
    recipe.write_text(f'[method]\nname = "{own}:Own"\n')
    for word in (f"--method {own}:Own", f"--recipe {recipe}", f"--resume {tmp_path}"):
        assert "--train.seed" in offered(f"unmask train {word} --train.s", COMMANDS, parse)


def test_completion_of_an_unknown_shell_is_refused_in_one_line(capsys):
    assert main(["--completion", "tcsh"]) == 2
    assert capsys.readouterr().err == "unmask: error: --completion is 'tcsh': give one of bash, fish, zsh\n"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """With a program `unmask` in the path."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "unmask"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m unmask "$@"\n')
    program.chmod(0o755)
    for shell, text in SCRIPTS.items():
        (folder / shell).write_text(text)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder), "TERM": "dumb"}


def told(shell: list[str], program: str, environment: dict[str, str]) -> list[str]:
    """What a program of a shell prints, where that shell is installed; nothing may stand on standard error."""
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    done = subprocess.run([*shell, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_completes_words_with_colons_and_equals_signs(environment):
    """COMPREPLY is what Bash puts in the place of what follows the last ":" or "=" that it breaks words at."""
    lines = {"train --method mdp": "mdpo", "train --model embedded:su": "sudoku", "train --method=mdp": "mdpo"}
    program = f'source "{environment["HOME"]}/bash"\ncomplete -p unmask\n'
    for line in lines:
        program += f'COMP_LINE="unmask {line} more"\nCOMP_POINT={len(f"unmask {line}")}\n_unmask\n'
        program += 'echo "${COMPREPLY[@]}"\n'
    registered = ["complete", "-o", "default", "-F", "_unmask", "unmask"]
    assert told(["bash", "--norc"], program, environment) == [*registered, *lines.values()]


def test_bash_puts_the_word_at_a_tab(environment):
    """A shell at a terminal, with a Tab that is pressed."""
    script = shutil.which("script")
    if script is None:
        pytest.skip("util-linux's script is not installed")
    command = [script, "-qec", "bash --norc -i", "/dev/null"]
    typed = f'source "{environment["HOME"]}/bash"\nunmask --vers\t\nexit\n'
    done = subprocess.run(
        command, input=typed, capture_output=True, text=True, env=environment, check=False, timeout=60
    )
    assert f"unmask {__version__}" in done.stdout


def test_zsh_completes(environment):
    program = "compdef() { :; }; compadd() { print -l -- $@[3,-1]; }\n"
    program += f'source "{environment["HOME"]}/zsh"\nwords=(unmask train --method mdp); CURRENT=4; _unmask\n'
    assert told(["zsh", "-f"], program, environment) == ["mdpo"]


def test_fish_completes(environment):
    program = f'source "{environment["HOME"]}/fish"\ncomplete --do-complete "unmask train --model embedded:su"'
    assert told(["fish", "--no-config"], program, environment) == ["embedded:sudoku"]


def test_scripts_are_read_by_their_shells(environment):
    for shell in SCRIPTS:
        if shutil.which(shell):
            checked = subprocess.run([shell, "-n", Path(environment["HOME"]) / shell], capture_output=True, check=False)
            assert (checked.returncode, checked.stderr) == (0, b"")
