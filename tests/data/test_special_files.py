"""A device or a pipe where a file should be is refused at once: reading it would never end."""

import os

import pytest

from unmask.cli.main import main
from unmask.data.examples import Examples
from unmask.data.readers.files import check_data_file, read_text
from unmask.denoisers.loading import load_tokenizer
from unmask.errors import UserError
from unmask.rewards.judge import load_judge
from unmask.settings.inputs import with_absolute_paths
from unmask.settings.recipe import RewardSettings
from unmask.settings.recipe_files import read_recipe
from unmask.settings.starting import tables_of_model
from unmask.tasks import Dataset
from unmask.validation.user_files import user_path


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


def test_tables_of_model_reads_no_device(special, tmp_path):
    special("config.json")
    assert tables_of_model(str(tmp_path)) == {}


def test_train_refuses_data_that_is_a_pipe(special, capsys):
    assert main(["train", "--task", "dataset", "--model", "embedded:sudoku", "--task.data", special("x.jsonl")]) == 2
    assert "not a file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["a" * 5000, "x/" + "b" * 300, "a\0b", "\ud800", "~nobody-is-called-so/x", "é" * 130])
def test_user_path_refuses_what_is_no_name_of_a_file(text):
    with pytest.raises(UserError, match="give a path") as caught:
        user_path(text)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("flag", ["--task.data", "--model", "--output", "--resume", "--recipe"])
@pytest.mark.parametrize("text", ["a" * 5000 + ".toml", "~nobody-is-called-so/x.toml"])
def test_train_refuses_what_is_no_name_of_a_file_in_one_line(flag, text, capsys):
    task = ["--task", "dataset", "--model", "embedded:sudoku"] if flag == "--task.data" else []
    assert main(["train", *task, flag, text]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_reward_functions_that_name_no_file_are_left_as_they_are():
    settings = RewardSettings(funcs="a" * 5000 + ".py:f,b:g")
    assert with_absolute_paths(settings) == settings


def test_prompts_with_half_of_a_character_are_refused(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(f'{{"prompt": "half \\ud800 {number}"}}\n' for number in range(40)))
    examples = Dataset(data=str(path)).examples("train", 3, 0)  # dealt to splits all the same
    with pytest.raises(UserError, match="lone surrogate"):
        Examples.of(examples, load_tokenizer("embedded:sudoku"), 5, 100)
