"""A chat template that computes without end, or takes memory without end, is refused in one line in time."""

import gc
import os
import shutil
import time
import weakref
from pathlib import Path

import pytest

from helpers.chat_tokenizers import FAMILIES, byte_tokenizer, family_tokenizer
from unmask.cli.main import main
from unmask.data import template_process
from unmask.data.template_process import TemplateProcess
from unmask.data.turns import templated
from unmask.denoisers.directories import ASSETS
from unmask.errors import UserError

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
ENDLESS = {
    "nested loops": LOOPS,
    "a long text": "{{ 'a' * 10**10 }}",
    "a large number": "{{ 9**(9**9) > 1 }}",
    "many long texts": "{% set n = namespace(x=[]) %}{% for i in range(9999) %}"
    "{% set n.x = n.x + ['a' * 10**6 ~ i] %}{% endfor %}",
    "when it is asked something": "{% for m in messages %}{% if 'x' in m.content %}"
    + LOOPS
    + "{% endif %}{% endfor %}",
}
TURNS = [{"role": "user", "content": "x"}]


@pytest.fixture
def _soon(monkeypatch):
    """It gives up after a fifth of its second."""
    monkeypatch.setattr(template_process, "MOST_SECONDS", 0.2)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("name", ENDLESS)
def test_templates_without_end_are_refused_in_one_line(name):
    tokenizer = byte_tokenizer(ENDLESS[name])
    begin_seconds = time.process_time()
    for _ in range(2):  # the second time at once
        with pytest.raises(
            UserError, match=r"refuses messages of user \(it takes more than 1 s or 1024 MiB\): mend it"
        ):
            templated(tokenizer, TURNS, "mend it")
    assert time.process_time() - begin_seconds < 0.2  # of this process
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert templated(tokenizer, TURNS, "") == "x"


def test_a_template_has_a_second_of_computing():
    template = "{% for i in range(400) %}{% for j in range(999) %}{% endfor %}{% endfor %}x"  # some tenths
    begin_seconds = time.perf_counter()
    assert templated(byte_tokenizer(template), TURNS, "") == "x"
    with pytest.raises(UserError, match="more than 1 s"):
        templated(byte_tokenizer(LOOPS), TURNS, "")
    assert time.perf_counter() - begin_seconds > 1


def test_a_template_that_writes_without_end_is_refused():
    with pytest.raises(UserError, match="it writes 20000000 characters"):
        templated(byte_tokenizer("{{ 'a' * 2 * 10**7 }}"), TURNS, "")


@pytest.mark.parametrize("family", FAMILIES)
def test_templates_write_what_they_write_in_this_process(family):
    tokenizer = family_tokenizer(family)
    for turns in (TURNS, [*TURNS, {"role": "assistant", "content": "\ud800 é\n"}]):
        for options in ({}, {"add_generation_prompt": True}, {"continue_final_message": True}):
            text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
            assert templated(tokenizer, turns, "", **options) == text


def children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def test_the_process_ends_with_its_tokenizer_and_holds_no_file_of_its_parent(tmp_path):
    before, held = children(), (tmp_path / "held").open("w")
    tokenizer = byte_tokenizer("{{ messages[0].content }}")
    process = TemplateProcess(tokenizer)
    process.render(TURNS, {})
    child = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1]
    files = [os.readlink(path) for path in Path(f"/proc/{child}/fd").iterdir()]
    assert held.name not in files
    gone = weakref.ref(tokenizer)
    del tokenizer, process
    gc.collect()
    assert gone() is None
    assert children() == before
    held.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model whose template never ends."""
    directory = tmp_path_factory.mktemp("models") / "endless"
    shutil.copytree(ASSETS / "arithmetic", directory)
    (directory / "chat_template.jinja").write_text(LOOPS)
    return str(directory)


@pytest.mark.usefixtures("_soon")
@pytest.mark.parametrize("command", ["train", "pretrain", "evaluate"])
def test_every_command_refuses_a_template_without_end(command, model, tmp_path, capsys):
    words = {
        "train": ("--task", "arithmetic", "--train.examples", "4", "--output", str(tmp_path / "run")),
        "pretrain": ("--task", "arithmetic", "--examples", "4", "--output", str(tmp_path / "new")),
        "evaluate": ("--task", "arithmetic", "--examples", "4", "--output", str(tmp_path / "table.json")),
    }
    assert main([command, "--model", model, *words[command]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the chat template refuses messages of user (it takes more than 1 s or 1024 MiB)" in line


def test_a_template_collects_nothing_of_the_process_that_forked():
    """It may hold tensors on a GPU, which a fork cannot give back."""
    process = os.getpid()

    class Held:
        def __del__(self):
            if os.getpid() != process:
                os._exit(1)

    many = "{% set n = namespace(x=[]) %}{% for i in range(999) %}{% set n.x = n.x + [[i]] %}{% endfor %}"
    tokenizer = byte_tokenizer(many + "{{ messages[0].content }}")
    gc.collect()  # the next collection of this process comes after the fork
    garbage = Held()
    garbage.itself = garbage
    del garbage
    renderer = TemplateProcess(tokenizer)
    assert renderer.render(TURNS, {}) == "x"
