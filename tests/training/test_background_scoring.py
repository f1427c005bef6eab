"""Completions are scored in a thread while others are sampled; nothing of what is learnt from depends on it."""

import threading

import pytest
import torch

from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks import TASKS
from unmask.training import on_policy
from unmask.training.build import build_trainer

SMALL = {
    "task": {"name": "arithmetic", "terms": 3, "max_number": 5},
    "model": "embedded:arithmetic",
    "rollout": {"prompts": 2, "num_generations": 4, "steps": 8, "block_length": 8},
    "train": {"examples": 8, "threads": 1, "learning_rate": 1e-4},
    "evaluation": {"examples": 4, "examples_during": 4, "greedy_steps": 8},
}
USER = """
import threading
THREADS = []
def length(completions, **columns):
    THREADS.append(threading.current_thread() is threading.main_thread())
    return [float(len(text)) for text in completions]
"""


def trainer_of(**sections):
    document = {name: SMALL.get(name, {}) for name in ("rollout", "train", "evaluation")}
    merged = {name: table | sections.pop(name, {}) for name, table in document.items()}
    return build_trainer(build(Recipe, {"task": SMALL["task"], "model": SMALL["model"], **merged, **sections}))


class Watched:
    """The task's rewards: which texts were asked for in which thread."""

    def __init__(self, monkeypatch):
        self.calls, whole = [], TASKS["arithmetic"].rewards

        def rewards(task, prompts, completions, **columns):
            self.calls.append((threading.current_thread() is threading.main_thread(), list(completions)))
            return whole(task, prompts, completions, **columns)

        monkeypatch.setattr(TASKS["arithmetic"], "rewards", rewards)


@pytest.mark.parametrize("method", ["diffu-grpo", "dispo"])
def test_background_scoring_scores_each_text_once_before_the_rollout_is_over(method, monkeypatch):
    with monkeypatch.context() as patch:
        watched, trainer = Watched(patch), trainer_of(method={"name": method}, rollout={"batch": 4})
        watched.calls.clear()  # all functions are asked once before the run
        metrics, _ = trainer.step(0)
    assert watched.calls
    assert not any(main for main, _ in watched.calls)
    calls = [sorted(texts) for _, texts in watched.calls]
    assert len(calls) > 1

    monkeypatch.setattr(on_policy.BackgroundScoring, "__call__", lambda self, rows, completions_NEC: None)
    late = Watched(monkeypatch)
    expected, _ = trainer_of(method={"name": method}, rollout={"batch": 4}).step(0)
    assert all(main for main, _ in late.calls)
    assert metrics == expected


def test_background_scoring_leaves_users_functions_to_the_main_thread(tmp_path):
    path = tmp_path / "lengths.py"
    path.write_text(USER)
    trainer = trainer_of(method={"name": "diffu-grpo"}, reward={"funcs": f"task,{path}:length"})
    trainer.step(0)
    threads = trainer.source.rewards.functions[1].call.__globals__["THREADS"]
    assert threads
    assert all(threads)


def test_background_scoring_raises_what_fails_in_the_thread(monkeypatch):
    def broken(task, prompts, completions, **columns):
        if threading.current_thread() is threading.main_thread():
            return [1.0] * len(completions)
        raise RuntimeError("no verdict")

    monkeypatch.setattr(TASKS["arithmetic"], "rewards", broken)
    trainer = trainer_of(method={"name": "diffu-grpo"})
    with pytest.raises(RuntimeError, match="no verdict"):
        trainer.step(0)


def test_sampling_mismatch_is_reported_with_a_cache_alone():
    plain = trainer_of(method={"name": "diffu-grpo"})
    assert not any(name.startswith("sampling/") for name in plain.step(0)[0])
    cached = trainer_of(method={"name": "diffu-grpo"}, rollout={"caching": "dual"})
    metrics, _ = cached.step(0)
    assert 0 < metrics["sampling/logp_gap"] < 1
    assert torch.isfinite(torch.tensor(metrics["sampling/kl"]))
