"""A device or a pipe where a file should be is refused at once: reading it would never end."""

import os

import pytest

from unmask.cli.main import main
from unmask.data.readers.files import check_data_file, read_text
from unmask.errors import UserError
from unmask.rewards.judge import load_judge
from unmask.settings.reader import read_recipe
from unmask.settings.starting import task_of_model


@pytest.fixture(params=["pipe", "link"])
def special(request, tmp_path):
    """special(name): a pipe, or a link to a file without end."""

    def make(name):
        path = tmp_path / name
        if request.param == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        return str(path)

    return make


@pytest.mark.parametrize(
    ("read", "name"),
    [(read_text, "x.jsonl"), (check_data_file, "x.jsonl"), (read_recipe, "x.toml"), (load_judge, "x.toml")],
)
def test_readers_refuse_a_device_or_a_pipe(read, name, special):
    with pytest.raises(UserError, match="a device or a pipe, not a file"):
        read(special(name))


def test_task_of_model_reads_no_device(special, tmp_path):
    special("config.json")
    assert task_of_model(str(tmp_path)) is None


def test_train_refuses_data_that_is_a_pipe(special, capsys):
    assert main(["train", "--task", "dataset", "--model", "embedded:sudoku", "--task.data", special("x.jsonl")]) == 2
    assert "not a file" in capsys.readouterr().err
