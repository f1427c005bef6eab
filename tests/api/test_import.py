"""`import unmask`: what it costs, and what it gives."""

import inspect
import subprocess
import sys

import pytest

import unmask


def printed_by(code: str, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *options, "-c", code], capture_output=True, text=True, check=True)


def test_import_unmask_brings_neither_torch_nor_transformers_and_takes_a_moment():
    heavy = "{'torch', 'transformers', 'numpy', 'rich', 'matplotlib'}"
    code = f"import sys; before = set(sys.modules); import unmask; print(({heavy} & set(sys.modules)) - before)"
    told = printed_by(code, "-X", "importtime")
    assert told.stdout == "set()\n"
    (line,) = [line for line in told.stderr.splitlines() if line.endswith("| unmask")]
    assert int(line.split("|")[1]) < 100_000  # microseconds, all that it imports included


def test_settings_methods_rules_and_tasks_are_made_without_torch():
    code = (
        "import sys, unmask\nfrom unmask import methods, rules, tasks\n"
        "unmask.Sampler(max_new_tokens=8, unmasking=rules.Random()), unmask.TrainingConfig(), methods.SPG(), "
        "tasks.Sudoku(), unmask.Callback(), unmask.StopTraining(), unmask.UserError()\n"
        "print('torch' in sys.modules)"
    )
    assert printed_by(code, "-W", "error").stdout == "False\n"


def test_every_public_name_is_there_and_says_what_it_is():
    for name in unmask.__all__:
        assert name in dir(unmask)
        assert inspect.getdoc(getattr(unmask, name))


def test_every_name_that_public_modules_list_is_there_and_says_what_it_is():
    for module in (unmask.functional, unmask.methods, unmask.rules, unmask.tasks, unmask.rewards):
        for name in module.__all__:
            named = getattr(module, name)
            assert not callable(named) or inspect.getdoc(named), name


def test_methods_lists_every_method_that_ships():
    listed = {getattr(unmask.methods, name) for name in unmask.methods.__all__ if name not in ("METHODS", "Method")}
    assert listed == set(unmask.methods.METHODS.values())


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'unmask' has no attribute 'Trainr'"):
        _ = unmask.Trainr


def test_importing_and_using_every_door_warns_of_nothing():
    code = "import unmask\nfor name in unmask.__all__: getattr(unmask, name)"
    assert printed_by(code, "-W", "error").stderr == ""
