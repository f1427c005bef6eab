"""A run that goes on to another number of steps: where its learning rates change, it is said."""

from dataclasses import replace

import pytest

from unmask.errors import UserError
from unmask.settings.recipe import Recipe, RewardSettings, TrainSettings
from unmask.settings.resume import changed_schedule, check_unchanged


def said(directory, before: int, after: int, **train) -> str | None:
    values = {"warmup_steps": 5} | train
    lines = [f"{name} = {value}" for name, value in {"steps": before, **values}.items()]
    (directory / "recipe.toml").write_text("\n".join(["[train]", *lines, ""]))
    return changed_schedule(directory, TrainSettings(max_steps=after, **values))


@pytest.mark.parametrize(("before", "after", "which"), [(40, 44, "longer"), (40, 30, "shorter"), (3, 44, "longer")])
@pytest.mark.parametrize("final_fraction", [0.0, 0.5, 0.9])
def test_changed_schedule_tells_of_a_decay_over_other_steps(before, after, which, final_fraction, tmp_path):
    line = said(tmp_path, before, after, final_fraction=final_fraction)
    assert f"over {after} steps in place of {before}: steps from here on use the {which} schedule" in line


@pytest.mark.parametrize(
    ("after", "train"), [(44, {}), (44, {"warmup_steps": 100}), (30, {}), (40, {"final_fraction": 0.1})]
)
def test_changed_schedule_is_silent_where_every_rate_stays(after, train, tmp_path):
    assert said(tmp_path, 40, after, **train) is None


def test_check_unchanged_lets_a_run_go_on_with_another_rule_for_rewards_that_fail():
    stored = replace(Recipe(), reward=RewardSettings(funcs="task,a.py:b"))
    changed = {"timeout_seconds": 9.0, "retries": 2, "on_fault": "none"}
    check_unchanged(stored, replace(stored, reward=replace(stored.reward, **changed)), "recipe.toml")
    with pytest.raises(UserError, match=r"reward\.weights"):
        check_unchanged(stored, replace(stored, reward=replace(stored.reward, weights="1,2")), "recipe.toml")
