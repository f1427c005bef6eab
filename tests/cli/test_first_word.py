"""Whatever takes seconds begins with a word: it is out before torch is imported, by whichever way."""

import subprocess
import sys
from pathlib import Path

import pytest

# Ends the process where torch would be imported: what is out by then has come first.
UNTIL_TORCH = """
import os, sys
from importlib.abc import MetaPathFinder
class End(MetaPathFinder):
    def find_spec(self, fullname, path, target=None):
        if fullname == "torch":
            os._exit(7)
sys.meta_path.insert(0, End())
from unmask.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
METHOD = """
import torch
from dataclasses import dataclass
from unmask.methods import WD1
from unmask.sampling.unmasking import Random

@dataclass(frozen=True, kw_only=True)
class Mine(WD1):
    name = "mine"

@dataclass(frozen=True, kw_only=True)
class Drawn(Random):
    name = "drawn"
"""


def said_before_torch(*words: str, where: Path) -> list[str]:
    """Lines of standard output at the moment when torch would be imported; nothing else is written."""
    done = subprocess.run([sys.executable, "-c", UNTIL_TORCH, *words], capture_output=True, text=True, cwd=where)
    assert (done.returncode, done.stderr) == (7, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (["train"], "unmask train: sudoku-dispo"),
        (["train", "--method", "mdpo"], "unmask train: mdpo-sudoku"),
        (["train", "--resume", "run"], "unmask train: run goes on"),
        (["evaluate", "--model", "there"], "unmask evaluate: there on sudoku"),
        (["pretrain", "--output", "model"], "unmask pretrain: a new model on sudoku"),
        (["sample"], "unmask sample: embedded:sudoku"),
        (["plan", "llada8b-spg"], "unmask plan: spg on"),
        (["oracle"], "unmask oracle: "),
        (["methods"], "unmask methods: "),
        (["methods", "mine.py:Mine"], "unmask methods: mine.py:Mine"),
        (["convert", "--model", "there", "--output", "model"], "unmask convert: there"),
        (["train", "--method", "mine.py:Mine"], "unmask train: starting"),
        (["evaluate", "--unmasking", "mine.py:Drawn"], "unmask evaluate: starting"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_main_says_a_word_before_torch_is_imported(words, first, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.toml").write_text('model = "embedded:sudoku"\n')
    said = said_before_torch(*words, where=tmp_path)
    assert len(said) == 1
    assert said[0].startswith(first)


@pytest.mark.parametrize("words", [["methods", "--markdown"], ["train", "--method", "mine.py:Mine", "--help"]])
def test_main_says_nothing_before_what_is_itself_the_output(words, tmp_path):
    (tmp_path / "mine.py").write_text(METHOD)
    assert said_before_torch(*words, where=tmp_path) == []
