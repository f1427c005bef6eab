"""A reward function that raises, hangs, leaves, prints a flood or answers oddly is named, bounded and done with."""

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time

import pytest

from helpers.long import long_unless
from unmask.cli.main import main
from unmask.data.example import Example
from unmask.data.examples import Examples
from unmask.errors import UserError
from unmask.rewards import RewardFunction, Rewards, calls, faults, load_functions
from unmask.rewards.faults import FaultRule
from unmask.settings.reader import build
from unmask.settings.recipe import RewardSettings
from unmask.tasks import Sudoku

ITEMS = [Example(prompt=f"prompt {name}", solution=name, columns={}) for name in "ab"]
EXAMPLES = Examples(items=ITEMS, prompt_ids=[[0]] * 2, eos_id=0, prefills=[""] * 2, ranked_ids=[])
TWO = ([0, 1], ["x", "y"])
SECONDS = 0.2  # time limit of a call that hangs


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch):
    monkeypatch.setattr(faults, "_FIRST_PAUSE_SECONDS", 0.01)


def one(completions, **columns):
    return [1.0] * len(completions)


def rewards_of(*functions, **rule) -> Rewards:
    made = [
        RewardFunction(spec=f"my.py:{f.__name__}", name=f.__name__, call=f, faults=FaultRule(**rule)) for f in functions
    ]
    return Rewards(functions=tuple(made), examples=EXAMPLES)


def waiting(function):
    """The function as an async one of the same name."""

    async def awaited(completions, **columns):
        return function(completions, **columns)

    awaited.__name__ = function.__name__
    return awaited


def raising(completions, **columns):
    completions.clear()
    raise KeyError("tone")


def leaving(completions, **columns):
    sys.exit(3)


def too_short(completions, **columns):
    return [1.0]


def no_list(completions, **columns):
    return "11"


FAULTS = [raising, leaving, too_short, no_list]


# ---- stop, retry, None ----


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("form", [lambda function: function, waiting])
def test_fault_gives_none_for_the_call_where_that_is_chosen(fault, form, caplog):
    rewards, scores = rewards_of(form(fault), one, gives_none=True)(*TWO)
    assert rewards.tolist() == [1, 1]
    assert scores[:, 0].isnan().all()
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"my.py:{fault.__name__}" in line
    assert "None for all 2" in line
    assert "\n" not in line


@pytest.mark.parametrize("gives_none", [False, True])
@pytest.mark.parametrize("form", [lambda function: function, waiting])
@pytest.mark.parametrize("fault", FAULTS)
def test_retries_ask_again_with_whole_lists(fault, form, gives_none, caplog):
    seen = []

    def moody(completions, **columns):
        seen.append(list(completions))
        return one(completions) if len(seen) == 3 else fault(completions)

    assert rewards_of(form(moody), retries=2, gives_none=gives_none)(*TWO)[0].tolist() == [1, 1]
    assert seen == [["x", "y"]] * 3
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "asked again" in caplog.text


def test_retries_that_all_fail_raise_the_last_error(caplog):
    with pytest.raises(KeyError, match="tone"):
        rewards_of(raising, retries=2)(*TWO)
    assert len(caplog.records) == 2
    assert "my.py:raising' raised KeyError: 'tone'" in caplog.text
    assert "test_reward_faults.py, line" in caplog.text


def test_retries_wait_twice_as_long_each_time(monkeypatch):
    monkeypatch.setattr(faults, "_FIRST_PAUSE_SECONDS", 1.0)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(KeyError):
        rewards_of(raising, retries=3)(*TWO)
    assert slept == [0, 1, 2, 4]
    assert FaultRule(timeout_seconds=10, retries=3).longest_seconds == 47


def test_odd_numbers_alone_are_none_where_that_is_chosen(caplog):
    def mixed(completions, **columns):
        return [float("nan"), 3.0]

    rewards, scores = rewards_of(mixed, one, gives_none=True)(*TWO)
    assert rewards.tolist() == [1, 4]
    assert scores[:, 0].isnan().tolist() == [True, False]
    assert "my.py:mixed' gave nan: None for 1 of 2" in caplog.text


def test_exception_with_a_long_text_is_told_in_one_short_line(caplog):
    def talking(completions, **columns):
        raise ValueError("a\nb" * 10**6)

    rewards_of(talking, one, gives_none=True)(*TWO)
    (record,) = caplog.records
    assert len(record.getMessage()) < 700
    assert "\n" not in record.getMessage()


# ---- time limit ----


def spinning(completions, **columns):
    while True:
        pass


def sleeping(completions, **columns):
    time.sleep(60)


def stubborn(completions, **columns):
    """Goes on after whatever it is interrupted by, at first."""
    try:
        time.sleep(60)
    except BaseException:  # noqa: BLE001
        time.sleep(60)


async def patient(completions, **columns):
    await asyncio.sleep(60)


async def clinging(completions, **columns):
    """Cannot be cancelled at first."""
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        time.sleep(60)


HANGING = [spinning, sleeping, stubborn, patient, waiting(spinning), waiting(sleeping), clinging]
IDS = ["spinning", "sleeping", "stubborn", "patient", "async spinning", "async sleeping", "clinging"]


@pytest.mark.parametrize("hang", long_unless([spinning, stubborn, clinging, HANGING[5]], HANGING), ids=IDS)
def test_time_limit_interrupts_a_call_and_names_it(hang, monkeypatch):
    monkeypatch.setattr("unmask.rewards.functions._LOOP_SECONDS", 0.1)
    monkeypatch.setattr(calls, "_AGAIN_SECONDS", 0.1)
    before, began = signal.getsignal(signal.SIGURG), time.monotonic()
    with pytest.raises(UserError, match=rf"my\.py:{hang.__name__}' has not answered.*reward\.timeout_seconds"):
        rewards_of(hang, timeout_seconds=SECONDS)(*TWO)
    assert time.monotonic() - began < 5
    assert signal.getsignal(signal.SIGURG) is before
    assert rewards_of(one, timeout_seconds=SECONDS)(*TWO)[0].tolist() == [1, 1]
    time.sleep(2 * SECONDS)  # no interruption comes late


def test_time_limit_leaves_what_answers_in_time_alone():
    def slow(completions, **columns):
        time.sleep(SECONDS / 2)
        return one(completions)

    async def slow_too(completions, **columns):
        await asyncio.sleep(SECONDS / 2)
        return one(completions)

    assert rewards_of(slow, slow_too, timeout_seconds=SECONDS * 20)(*TWO)[0].tolist() == [2, 2]


def test_time_limit_counts_as_a_fault_like_others():
    asked = []

    def slow_at_first(completions, **columns):
        asked.append(1)
        return sleeping(completions) if len(asked) == 1 else one(completions)

    assert rewards_of(slow_at_first, timeout_seconds=SECONDS, retries=1)(*TWO)[0].tolist() == [1, 1]
    assert rewards_of(patient, one, timeout_seconds=SECONDS, gives_none=True)(*TWO)[0].tolist() == [1, 1]


def test_own_timeout_error_is_not_taken_for_the_time_limit():
    async def own(completions, **columns):
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        rewards_of(own, timeout_seconds=60)(*TWO)


def test_reward_function_may_use_alarms_of_its_own():
    def alarmed(completions, **columns):
        rang = []
        before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.05)
        signal.signal(signal.SIGALRM, before)
        return [float(len(rang))] * len(completions)

    assert rewards_of(alarmed, timeout_seconds=60)(*TWO)[0].tolist() == [1, 1]


def test_time_limit_elsewhere_than_in_the_main_thread_is_none():
    found = []
    thread = threading.Thread(target=lambda: found.extend(rewards_of(one, timeout_seconds=SECONDS)(*TWO)[0].tolist()))
    thread.start()
    thread.join()
    assert found == [1, 1]


IN_C = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("calls", sys.argv[1])
sys.modules["calls"] = calls = importlib.util.module_from_spec(spec)
spec.loader.exec_module(calls)
calls.GRACE_SECONDS = 0.1

def huge():
    return 9**int("9" * 9)

with calls.interrupted_after(0.1):
    huge()
"""


def test_time_limit_ends_a_process_that_no_signal_reaches():
    """A call in C that holds the GIL."""
    ended = subprocess.run([sys.executable, "-c", IN_C, calls.__file__], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "in huge" in ended.stderr


# ---- floods ----


@pytest.mark.parametrize("stream", ["out", "err"])
@pytest.mark.parametrize("form", [lambda function: function, waiting])
def test_flood_is_cut_and_its_length_told(stream, form, capsys, caplog):
    def flooding(completions, **columns):
        for _ in range(100):
            print("x" * 999, file=getattr(sys, f"std{stream}"))
        return one(completions)

    def quiet(completions, **columns):
        print("a word")
        return one(completions)

    assert rewards_of(form(flooding), form(quiet))(*TWO)[0].tolist() == [2, 2]
    written = getattr(capsys.readouterr(), stream)
    assert written.count("x") == 19_980
    assert written.count("\n") == 21 + (stream == "out")  # nothing else stands in the last line
    assert ("a word" in written) == (stream == "out")
    assert "my.py:flooding' has printed 80000 characters more" in caplog.text
    assert "quiet" not in caplog.text
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_flood_does_not_silence_other_threads(capsys):
    def flooding(completions, **columns):
        print("x" * 30_000)
        thread = threading.Thread(target=print, args=("progress",))
        thread.start()
        thread.join()
        return one(completions)

    rewards_of(flooding)(*TWO)
    assert "progress" in capsys.readouterr().out


# ---- settings ----


def test_load_functions_takes_the_rule_of_the_settings():
    settings = build(
        RewardSettings,
        {"funcs": "task,builtins:len", "timeout_seconds": 7.0, "retries": 2, "on_fault": "none"},
    )
    for function in load_functions(settings, Sudoku(), "cpu"):
        assert function.faults == FaultRule(timeout_seconds=7.0, retries=2, gives_none=True)
    assert FaultRule(timeout_seconds=540) == load_functions(RewardSettings(), Sudoku(), "cpu")[0].faults


def test_load_functions_asks_a_task_of_the_users_in_the_main_thread():
    class Mine(Sudoku):
        pass

    assert [load_functions(RewardSettings(), task(), "cpu")[0].ahead for task in (Sudoku, Mine)] == [True, False]


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({"on_fault": "zero", "funcs": "task,a.py:b"}, "'zero'"),
        ({"on_fault": "none"}, "without a reward"),
        ({"retries": 11}, "11"),
        ({"timeout_seconds": -1.0}, "-1"),
    ],
)
def test_reward_settings_refuse_rules_that_cannot_work(settings, value):
    with pytest.raises(UserError, match=r"reward\.") as caught:
        build(RewardSettings, settings, "reward.")
    assert value in str(caught.value)


@pytest.mark.parametrize("hang", ["def", "async def"])
@pytest.mark.parametrize(("others", "advised"), [("", False), ("task,", True)])
def test_a_function_that_hangs_may_be_left_out_where_there_is_another(others, advised, hang, tmp_path):
    wait = "await asyncio.sleep(60)" if hang == "async def" else "time.sleep(60)"
    path = tmp_path / "my.py"
    path.write_text(f"import asyncio, time\n{hang} hangs(completions, **columns):\n    {wait}\n")
    settings = build(RewardSettings, {"funcs": f"{others}{path}:hangs", "timeout_seconds": SECONDS})
    *_, hanging = load_functions(settings, Sudoku(), "cpu")
    with pytest.raises(UserError, match=r"raise reward\.timeout_seconds if it needs longer") as raised:
        Rewards(functions=(hanging,), examples=EXAMPLES)(*TWO)
    assert ("reward.on_fault none" in str(raised.value)) == advised


# ---- once before the run ----

SMALL = ("--train.examples=4", "--evaluation.examples=4", "--train.max-steps=1", "--train.threads=1", "--output=run")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [float('nan')] * len(completions)", "nan"),
        ("import sys; sys.exit(0)", "sys.exit"),
        ("return []", "0 scores of 1"),
        ("import time; time.sleep(60)", "has not answered for 0.2 s"),
    ],
)
def test_train_asks_once_before_anything_is_written(body, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(f"def odd(completions, **columns):\n    {body}\n")
    flags = ("--reward.funcs=task,my.py:odd", "--reward.timeout-seconds=0.2", "--reward.on-fault=none")
    began = time.monotonic()
    assert main(["train", *SMALL, *flags]) == 2
    assert time.monotonic() - began < 30
    line = capsys.readouterr().err
    assert "my.py:odd" in line
    assert told in line
    assert not (tmp_path / "run").exists()


def test_ask_once_asks_for_a_solution_and_remembers_nothing():
    asked = []

    def noting(prompts, completions, **columns):
        asked.append((prompts, completions))
        return one(completions)

    rewards = rewards_of(noting, gives_none=True)
    rewards.ask_once()
    assert asked == [(["prompt a"], ["a"])]
    rewards([0], ["a"])
    assert len(asked) == 2


CRASH = """
import sys
from unittest.mock import MagicMock
sys.modules |= {"torch": MagicMock(), "transformers": MagicMock(), "transformers.utils": MagicMock()}
from unmask.cli.environment import prepare
prepare(None)
def crashing():
    import ctypes
    ctypes.string_at(0)
crashing()
"""


def test_prepare_has_a_crash_show_where_it_was():
    """Without the second that importing torch takes: prepare only tells it its threads."""
    ended = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=60)
    assert ended.returncode == -signal.SIGSEGV
    assert "in crashing" in ended.stderr
