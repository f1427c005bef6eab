"""Every block of the documentation is of a kind that is tried: commands, programs, rows, settings; or says why not."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from helpers.pages import PAGES, ROOT, all_blocks, write_own
from unmask.cli.completion import SCRIPTS
from unmask.cli.main import main, parse
from unmask.cli.subcommands import COMMANDS
from unmask.methods import METHODS
from unmask.settings.reader import build, leaves
from unmask.settings.recipe import Recipe

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TARGETS = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE).group(1).split()
BLOCKS = [block for page in PAGES for block in all_blocks(page)]


def test_pages_show_commands():
    assert len(BLOCKS) > 50
    assert {"README.md", "data.md", "rewards.md", "evaluation.md", "plan.md"} <= {
        block.page.name for block in BLOCKS if block.commands and not block.language
    }


def ids(block):
    return f"{block.page.name}-{BLOCKS.index(block)}"


def check_unmask(words):
    if words and words[0] == "--completion":
        assert words[1] in SCRIPTS
    elif words and words[0].startswith("-"):
        assert words[0] in ("--help", "--version")
    elif "--help" not in words:
        parse(words[0], COMMANDS[words[0]], [{"RECIPE": "sudoku-dispo"}.get(word, word) for word in words[1:]])


def check_pip(words):
    for wanted in words[1:]:
        name, _, extra = wanted.rstrip("]").partition("[")
        assert words[0] == "install"
        assert name in (".", PROJECT["name"])
        assert not extra or extra in PROJECT["optional-dependencies"], f"no extra {extra}"


def check_make(words):
    assert [word for word in words if "=" not in word and word not in TARGETS] == []


def check_python(words):
    if words[0] == "-m":
        assert (ROOT / "src" / Path(*words[1].split("."))).with_suffix(".py").is_file() or words[1] == "unmask"
        if words[1] == "unmask":
            check_unmask(words[2:])
    elif words[0] != "-c":
        assert (ROOT / words[0]).is_file() or (ROOT / "docs" / words[0]).is_file(), f"no file {words[0]}"


def check_torchrun(words):
    check_python(words[words.index("-m") :])


def check_source(words):
    match = re.fullmatch(r"<\(unmask --completion (\w+)\)", " ".join(words))
    assert match
    assert match.group(1) in SCRIPTS


CHECKS = {
    "unmask": check_unmask,
    "pip": check_pip,
    "make": check_make,
    "python": check_python,
    "torchrun": check_torchrun,
    "source": check_source,
}


@pytest.fixture
def user_directory(tmp_path, monkeypatch):
    """Where a reader stands: with the files of the pages, and runs of the names that they use."""
    monkeypatch.chdir(tmp_path)
    write_own(tmp_path)
    for block in BLOCKS:
        if block.file:
            (tmp_path / block.file).write_text(block.text)
    for name in sorted({name for block in BLOCKS for name in re.findall(r"--resume runs/([\w.-]+)", block.text)}):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.toml").write_text('model = "embedded:sudoku"\n')
    return tmp_path


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.language], ids=ids)
def test_commands_are_ones_that_can_be_given(block, user_directory):
    """Resolved as far as costs nothing: flags and recipes, targets of make, extras, files of the repository."""
    for command in block.commands:
        words = shlex.split(command)
        if "[" in command and words[0] == "unmask":
            continue  # forms of flags
        if block.not_run is None or words[0] in CHECKS:
            assert words[0] in CHECKS, f"{command}: say above the block why it is not run, <!-- not run: REASON -->"
            CHECKS[words[0]](words[1:])


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language], ids=ids)
def test_blocks_are_read_in_their_language(block):
    match block.language:
        case "python":
            compile(block.text, block.page.name, "exec")
        case "toml":
            tomllib.loads(block.text)
        case "json":
            json.loads(block.text)
        case "jsonl":
            assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
        case language:
            assert language == "text", f"blocks in {language!r} are tried by no test"


SETTING = re.compile(r"`(?:--)?((?:train|rollout|reward|evaluation|chat)\.(?!jsonl)[a-z_-]+)\b")
OF_METHODS = re.compile(r"--method\.([a-z-]+)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_pages_name_are_settings(page):
    known = {leaf.path for leaf in leaves(build(Recipe, {}))}
    of_methods = {leaf.path for method in METHODS.values() for leaf in leaves(method())} | {"base", "caution"}
    text = re.sub(r"^\| .*", lambda row: row.group().split("|", 2)[-1], page.read_text(), flags=re.MULTILINE)
    named = {name.replace("-", "_") for name in SETTING.findall(text)}
    assert sorted(named - known) == []
    assert sorted({name.replace("-", "_") for name in OF_METHODS.findall(text)} - of_methods) == []


QUICK = shlex.split(
    "--rollout.prompts 2 --train.max-steps 2 --train.examples 8 --train.threads 1 --evaluation.examples 4 "
    "--evaluation.greedy-steps 4"
)
FIRST_MINUTES = {"sample": [], "evaluate": ["--examples", "4"], "train": QUICK, "methods": [], "report": []}


@pytest.mark.long
def test_five_minutes_work_as_written(tmp_path, monkeypatch):
    """All of the page's commands, in its order, with fewer steps."""
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "five-minutes.md"
    done = []
    for command in (command for block in all_blocks(page) if not block.language for command in block.commands):
        words = shlex.split(command)
        if words[0] != "unmask" or words[1].startswith("-"):
            continue
        more = FIRST_MINUTES[words[1]] if "--resume" not in words else ["--train.max-steps", "4"]
        assert main([*words[1:], *more]) == 0
        done.append(words[1])
    assert done.count("train") >= 3
    assert Path("runs/first/curve.png").is_file()


TELLING = {"plan": [], "methods": [], "recipes": [], "oracle": ["--groups", "100", "--masks", "50"]}
TOLD = {line for block in BLOCKS if not block.language for line in block.commands if line[:7] == "unmask "}


@pytest.mark.long
@pytest.mark.parametrize("command", sorted(line for line in TOLD if line.split()[1] in TELLING and "[" not in line))
def test_commands_that_tell_something_run_as_pasted(command, user_directory, capsys):
    name, *words = shlex.split(command)[1:]
    assert main([name, *({"RECIPE": "sudoku-dispo"}.get(word, word) for word in words), *TELLING[name]]) == 0
    assert capsys.readouterr().out


# Those of python.md are run by tests/api/test_python_docs.py.
PROGRAMS = [block for block in BLOCKS if block.language == "python" and not block.file and block.page.stem != "python"]


@pytest.mark.long
@pytest.mark.parametrize("block", PROGRAMS, ids=ids)
def test_programs_run(block, tmp_path):
    if block.not_run:
        pytest.skip(block.not_run)
    done = subprocess.run([sys.executable, "-c", block.text], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
