"""What the functions give becomes one reward: weights, None, waiting together, remembering, faults named."""

import asyncio
import functools
import sys
import threading
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unmask.data.example import Example
from unmask.data.examples import Examples
from unmask.distributed import World
from unmask.errors import UserError
from unmask.rewards import RewardFunction, Rewards, cached, calls
from unmask.rewards.functions import is_cached
from unmask.rewards.scoring import ScoreCache

ITEMS = [Example(prompt=f"prompt {name}", solution="", columns={"answer": name * 2}) for name in "abc"]
EXAMPLES = Examples(items=ITEMS, prompt_ids=[[0]] * 3, eos_id=0, prefills=[""] * 3, ranked_ids=[])


def rewards_of(*calls, weights=None, **settings) -> Rewards:
    functions = tuple(
        RewardFunction(
            spec=f"my.py:{call.__name__}",
            name=call.__name__,
            call=call,
            weight=weight,
            cached=is_cached(call),
        )
        for call, weight in zip(calls, weights or [1.0] * len(calls), strict=True)
    )
    return Rewards(functions=functions, examples=EXAMPLES, **settings)


def table(name, scores, calls=None):
    """A reward function that looks scores up by completion, and notes in `calls` what it was asked."""

    def function(prompts, completions, **columns):
        if calls is not None:
            calls.append([*zip(prompts, completions, columns["answer"], strict=True)])
        return [scores[text] for text in completions]

    function.__name__ = name
    return function


def length(prompts, completions, **columns):
    return [len(text) for text in completions]


# ---- weighted sums ----


def test_rewards_are_the_weighted_sum_of_the_functions_that_apply():
    right = table("right", {"x": 1.0, "yy": 0.0, "zzz": None})
    brief = table("brief", {"x": None, "yy": 3, "zzz": 0.25})
    rewards, scores = rewards_of(right, brief, length, weights=[2.0, 0.5, -1.0])([0, 1, 2], ["x", "yy", "zzz"])
    assert rewards.tolist() == [2 - 1, 0 + 1.5 - 2, 0.125 - 3]
    nan = float("nan")
    expected = torch.tensor([[1, nan, 1], [0, 3, 2], [nan, 0.25, 3]])
    torch.testing.assert_close(scores, expected, equal_nan=True, rtol=0, atol=0)


def test_rewards_refuse_a_completion_that_no_function_scores():
    with pytest.raises(UserError, match="prompt b"):
        rewards_of(table("one", {"x": 1, "y": None}), table("two", {"x": 1, "y": None}))([0, 1], ["x", "y"])


def test_rewards_call_a_function_once_for_each_distinct_completion():
    calls = []
    rewards, _ = rewards_of(table("one", {"x": 1, "y": 2}, calls))([2, 0, 2, 2], ["x", "x", "y", "x"])
    assert calls == [[("prompt c", "x", "cc"), ("prompt a", "x", "aa"), ("prompt c", "y", "cc")]]
    assert rewards.tolist() == [1, 1, 2, 1]


def test_reward_function_may_change_the_lists_it_is_given():
    def greedy(prompts, completions, answer):
        scores = [1.0] * len(completions)
        prompts.clear(), completions.clear(), answer.clear()
        return scores

    rewards, _ = rewards_of(greedy, length)([0, 1], ["x", "yy"])
    assert rewards.tolist() == [2, 3]


# ---- remembering ----


def test_rewards_remember_only_cached_functions_from_call_to_call():
    kept, asked = [], []
    scores = {"x": 1.0, "y": None, "z": 3.0}
    rewards = rewards_of(cached(table("pure", scores, kept)), table("moody", scores, asked), length)
    first, _ = rewards([0, 0, 1], ["x", "y", "x"])
    again, _ = rewards([0, 0, 1, 1], ["x", "y", "x", "z"])
    assert again.tolist() == [*first.tolist(), 7]
    assert [len(call) for call in kept] == [3, 1]
    assert kept[1] == [("prompt b", "z", "bb")]
    assert [len(call) for call in asked] == [3, 4]


def test_rewards_call_nothing_where_all_is_remembered():
    kept = []
    rewards = rewards_of(cached(table("pure", {"x": 1.0}, kept)))
    assert rewards([0], ["x"])[0].tolist() == rewards([0], ["x"])[0].tolist() == [1]
    assert len(kept) == 1


def test_score_cache_forgets_what_was_not_asked_for_longest():
    kept = []
    rewards = rewards_of(cached(table("pure", {text: ord(text) for text in "vwxyz"}, kept)), cache_size=2)
    asked = [["x"], ["y"], ["x"], ["z"], ["x"], ["y"], list("vwxyz")]
    for texts in asked:
        assert rewards([0] * len(texts), texts)[0].tolist() == [ord(text) for text in texts]
    assert [[text for _, text, _ in call] for call in kept] == [["x"], ["y"], ["z"], ["y"], ["v", "w", "z"]]


# ---- async ----


def test_call_all_runs_async_functions_together():
    """Each sets the other's event and waits for its own: one after the other, neither would end."""
    events = {"one": asyncio.Event(), "two": asyncio.Event()}

    async def meet(mine, other):
        events[other].set()
        await asyncio.wait_for(events[mine].wait(), timeout=10)
        return [1.0]

    async def one(prompts, completions, **columns):
        return await meet("one", "two")

    class Two:
        __name__ = "two"

        async def __call__(self, prompts, completions, **columns):
            return await meet("two", "one")

    rewards, _ = rewards_of(one, length, Two(), weights=[1, 10, 100])([0], ["abc"])
    assert rewards.tolist() == [131]


def test_call_all_lets_other_functions_run_a_loop_of_their_own():
    async def later(prompts, completions, **columns):
        return [1.0]

    def own_loop(prompts, completions, **columns):
        return asyncio.run(later(prompts, completions))

    assert rewards_of(own_loop, later)([0], ["x"])[0].tolist() == [2]


# ---- faults ----


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([1.0], "1 scores of 2"),
        ([1.0, 2.0, 3.0], "3 scores of 2"),
        ([1.0, float("nan")], "nan"),
        ([float("-inf"), 1.0], "-inf"),
        ([1.0, 10**400], "finite"),
        ([1.0, 1e39], "finite"),  # infinite as float32
        ([1.0, "2"], "'2'"),
        ([1.0, 2j], "2j"),
        ([1.0, [2.0]], "[2.0]"),
        ([1.0, np.array(np.nan)], "nan"),
        ([1.0, torch.tensor(float("inf"))], "inf"),
        ([1.0, torch.tensor([2.0])], "[2.]"),
        ([1.0, np.array("2")], "'2'"),
        (torch.tensor([[1.0], [2.0]]), "[1.0]"),
        ({"x": 1.0, "y": 2.0}, "list"),
        ("12", "list"),
        (None, "list"),
        (1.0, "list"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("is_async", [False, True])
def test_reward_function_refuses_what_is_no_list_of_numbers(given, named, is_async):
    def odd(prompts, completions, **columns):
        return given

    async def awaited(prompts, completions, **columns):
        return given

    with pytest.raises(UserError) as caught:
        rewards_of(awaited if is_async else odd)([0, 1], ["x", "y"])
    assert ("my.py:awaited" if is_async else "my.py:odd") in str(caught.value)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        (1, True),
        [np.float32(1), np.int64(1)],
        [np.bool_(True), np.array(1)],
        [torch.tensor(1.0, dtype=torch.bfloat16, requires_grad=True), torch.tensor(True)],
        np.array([1, 1]),
        np.array([True, np.bool_(True)], dtype=object),
        torch.tensor([1.0, 1.0]),
        torch.tensor([True, True]),
    ],
    ids=repr,
)
def test_reward_function_takes_numbers_of_other_libraries(given):
    assert rewards_of(functools.wraps(length)(lambda **arguments: given))([0, 1], ["x", "y"])[0].tolist() == [1, 1]


@pytest.mark.parametrize("is_async", [False, True])
def test_reward_function_exception_says_which_raised_it(is_async):
    def broken(prompts, completions, **columns):
        raise KeyError("tone")

    async def awaited(prompts, completions, **columns):
        return broken(prompts, completions)

    call = awaited if is_async else broken
    with pytest.raises(KeyError) as caught:
        rewards_of(length, call)([0], ["x"])
    assert caught.value.__notes__ == [f"raised by the reward function 'my.py:{call.__name__}'"]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("code", [0, None, 3])
def test_reward_function_exit_is_an_error(is_async, code):
    def leaves(prompts, completions, **columns):
        sys.exit(code)

    async def awaited(prompts, completions, **columns):
        leaves(prompts, completions)

    call = awaited if is_async else leaves
    with pytest.raises(UserError, match=rf"my\.py:{call.__name__}' called sys\.exit"):
        rewards_of(length, call)([0], ["x"])


@pytest.mark.parametrize("is_async", [False, True])
def test_reward_function_that_waits_is_named_in_the_log(is_async, monkeypatch, caplog):
    monkeypatch.setattr(calls, "WAIT_SECONDS", 0.05)

    def slow(prompts, completions, **columns):
        deadline = time.monotonic() + 10
        while len(caplog.records) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        return [1.0] * len(completions)

    async def awaited(prompts, completions, **columns):
        return slow(prompts, completions)

    call = awaited if is_async else slow
    assert rewards_of(call)([0], ["x"])[0].tolist() == [1]
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert all(f"'my.py:{call.__name__}' has not answered for" in line for line in lines)
    rewards_of(length)([0], ["x"])
    time.sleep(0.2)
    assert len(caplog.records) == 3


def test_check_signature_refuses_before_the_first_call():
    def no_columns(prompts, completions):
        return [0.0] * len(completions)

    def needs_ids(completions, completion_ids, **columns):
        return [0.0] * len(completions)

    def by_name(completions, answer, **rest):
        return [float(text == wanted) for text, wanted in zip(completions, answer, strict=True)]

    with pytest.raises(UserError, match=r"my\.py:no_columns.*'answer'.*\*\*columns"):
        rewards_of(no_columns)
    with pytest.raises(UserError, match=r"my\.py:needs_ids.*'completion_ids'"):
        rewards_of(needs_ids)
    assert rewards_of(by_name)([0, 1], ["aa", "aa"])[0].tolist() == [1, 0]


# ---- metrics ----


class ThreadWorld(World):
    """One of several ranks that are threads of this process."""

    def __init__(self, rank, shared):
        super().__init__(device=torch.device("cpu"), rank=rank, size=shared.barrier.parties)
        object.__setattr__(self, "_shared", shared)

    def sum(self, value):
        self._shared.values[self.rank] = value
        self._shared.barrier.wait()
        summed = sum(self._shared.values)
        self._shared.barrier.wait()
        return summed


def on_ranks(parts, measure) -> list:
    """measure(part, world) of each part in a thread of its own, their sums added up as over ranks."""
    shared = SimpleNamespace(barrier=threading.Barrier(len(parts), timeout=10), values=[None] * len(parts))
    results = [None] * len(parts)

    def run(rank):
        results[rank] = measure(parts[rank], ThreadWorld(rank, shared))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_rewards_metrics_are_of_all_ranks_and_leave_none_out():
    nan = float("nan")
    scores = torch.tensor([[1000, nan, nan], [1001, nan, nan], [1002, 5, nan], [1005, nan, nan]])
    rewards = rewards_of(length, table("rare", {}), table("never", {}))
    expected = {
        "rewards/length/mean": 1002,
        "rewards/length/std": (14 / 3) ** 0.5,
        "rewards/length/none_fraction": 0,
        "rewards/rare/mean": 5,
        "rewards/rare/std": 0,
        "rewards/rare/none_fraction": 0.75,
        "rewards/never/none_fraction": 1,
    }
    assert rewards.metrics(scores, World.single()) == pytest.approx(expected, rel=1e-6)
    for parts in ([scores[:2], scores[2:]], [scores[:1], scores[1:3], scores[3:]]):
        for seen in on_ranks(parts, rewards.metrics):
            assert seen == pytest.approx(expected, rel=1e-6)


def test_rewards_metrics_of_the_task_alone_are_none():
    task = RewardFunction(spec="task", name="task", call=length)
    assert Rewards(functions=(task,), examples=EXAMPLES).metrics(torch.ones(4, 1), World.single()) == {}


@pytest.mark.parametrize(
    "read",
    [
        lambda c: c[0]["content"],
        lambda c: c["content"],
        lambda c: c[-1].get("content"),
        lambda c: [turn.content for turn in c],
    ],
)
@pytest.mark.parametrize("waits", [False, True])
def test_reward_function_that_reads_conversations_is_told_that_completions_are_texts(read, waits):
    def conversational(completions, **columns):
        return [float(len(read(c))) for c in completions]

    async def later(completions, **columns):
        return conversational(completions)

    with pytest.raises((TypeError, AttributeError)) as error:
        rewards_of(later if waits else conversational)([0, 1], ["x", "yy"])
    assert any("completions and prompts are texts" in note for note in error.value.__notes__)


def test_reward_function_with_another_fault_is_told_nothing_of_texts():
    def faulty(completions, **columns):
        return [len(completions) + "1"]

    with pytest.raises(TypeError) as error:
        rewards_of(faulty)([0], ["x"])
    assert error.value.__notes__ == ["raised by the reward function 'my.py:faulty'"]


def test_score_cache_takes_as_much_memory_for_long_texts_as_for_short_ones():
    size = 8_192
    cache = ScoreCache(size)
    tracemalloc.start()
    for number in range(size + 500):
        cache.add({(number, f"{number} " * 50, ""): 1.0})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 16e6 * size / 65_536  # what docs/rewards.md says of a whole one
    assert len(cache.known([(number, f"{number} " * 50, "") for number in range(size + 500)])) == size


def test_score_cache_tells_keys_apart():
    cache = ScoreCache(10)
    cache.add({(1, "a", "b"): 1.0})
    others = [(11, "a", "b"), (1, "ab", ""), (1, "", "ab"), (1, "a", "b\0"), (1, "1:ab", "")]
    assert cache.known([*others, (1, "a", "b")]) == {(1, "a", "b"): 1.0}
    cache.add({(1, "\ud800", ""): 2.0})
    assert cache.known([(1, "\ud800", "")]) == {(1, "\ud800", ""): 2.0}
