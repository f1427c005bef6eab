"""A user's file sees the modules of its own directory, and no other file's."""

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.long import long_unless
from unmask.errors import UserError
from unmask.validation import load_named, place_of

FILE = """
import helpers, deep.inner as renamed, deep.inner, plain.part
from helpers import score
from deep import inner, other
from json import dumps
import random

class Mine:
    pass

def now():
    return score(), deep.inner.VALUE, renamed.VALUE, inner.VALUE, other.VALUE, helpers.NAME, plain.part.VALUE, dumps(1)

def late():
    from later import VALUE
    return VALUE
"""


def write(directory, value):
    """A file of rewards with neighbours that say `value`."""
    directory.mkdir()
    (directory / "my_rewards.py").write_text(FILE)
    (directory / "helpers.py").write_text("from base import NAME\nclass Helper: pass\ndef score():\n    return NAME\n")
    (directory / "base.py").write_text(f"NAME = {value!r}\n")
    (directory / "later.py").write_text("from base import NAME as VALUE\n")
    (directory / "deep").mkdir()
    (directory / "deep" / "__init__.py").write_text("")
    (directory / "deep" / "inner.py").write_text("from .other import VALUE\n")
    (directory / "deep" / "other.py").write_text("from base import NAME as VALUE\n")
    (directory / "plain").mkdir()
    (directory / "plain" / "part.py").write_text("from base import NAME as VALUE\n")
    (directory / "random.py").write_text("VALUE = 'not the library'\n")
    return directory / "my_rewards.py"


def test_load_named_gives_each_file_its_own_neighbours(tmp_path):
    one, two = write(tmp_path / "one", "1"), write(tmp_path / "two", "2")
    before, names = list(sys.path), set(sys.modules)
    first, second = load_named(f"{one}:now", "reward"), load_named(f"{two}:now", "reward")
    assert first() == (*["1"] * 7, "1")
    assert second() == (*["2"] * 7, "1")
    assert [load_named(f"{path}:late", "reward")() for path in (two, one, two)] == ["2", "1", "2"]
    assert not {"helpers", "base", "later", "deep", "plain"} & (set(sys.modules) - names)
    assert [place for place in sys.path if place not in before] in ([], [str(Path.cwd())])
    import random

    assert not hasattr(random, "VALUE")
    assert first.__globals__["random"].VALUE == "not the library"


def test_load_named_runs_a_neighbour_once(tmp_path):
    one = write(tmp_path / "one", "1")
    (one.parent / "other.py").write_text("import my_rewards\nfrom helpers import Helper\ndef f():\n    pass\n")
    other = load_named(f"{one.parent / 'other.py'}:f", "reward")
    assert other.__globals__["my_rewards"].now is load_named(f"{one}:now", "reward")
    helper = other.__globals__["Helper"]
    assert load_named(place_of(helper), "helper") is helper


def test_load_named_file_may_have_the_name_of_what_it_imports(tmp_path):
    (tmp_path / "textwrap.py").write_text("from textwrap import dedent\ndef f():\n    return dedent(' x')\n")
    (tmp_path / "wave").mkdir()  # a folder of data
    (tmp_path / "data.py").write_text("import wave\ndef f():\n    return wave.open\n")
    assert load_named(f"{tmp_path / 'textwrap.py'}:f", "reward")() == "x"
    assert callable(load_named(f"{tmp_path / 'data.py'}:f", "reward")())


def test_load_named_tells_what_a_neighbour_lacks(tmp_path):
    (tmp_path / "helpers.py").write_text("import nowhere_at_all\n")
    (tmp_path / "f.py").write_text("import helpers\ndef f():\n    pass\n")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
            load_named(f"{tmp_path / 'f.py'}:f", "reward")
    (tmp_path / "helpers.py").write_text("")  # mended
    load_named(f"{tmp_path / 'f.py'}:f", "reward")


def test_load_named_refuses_a_file_that_exits(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text("import sys\ndef f():\n    pass\nsys.exit()\n")
    with pytest.raises(UserError, match=r"program.py' calls sys.exit while a reward is imported"):
        load_named(f"{tmp_path / 'program.py'}:f", "reward")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'program' calls sys.exit"):
        load_named("program:f", "reward")


CONSOLE = "import sys; sys.path[0] = {scripts!r}; from unmask.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("how", long_unless({"script"}, ["script", "module"]))
def test_module_name_sees_the_current_directory(tmp_path, how):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my_methods.py").write_text(
        "from unmask.methods import DiffuGRPO\nfrom my_base import NAME\nclass Mine(DiffuGRPO):\n    name = NAME\n"
    )
    (tmp_path / "here" / "my_base.py").write_text("NAME = 'mine'\n")
    start = ["-m", "unmask"] if how == "module" else ["-c", CONSOLE.format(scripts=str(tmp_path))]
    done = subprocess.run(
        [sys.executable, *start, "methods", "my_methods:Mine"], cwd=tmp_path / "here", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mine" in done.stdout
