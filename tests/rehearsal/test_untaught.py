"""Recipes for two steps on stand-ins that nobody has taught: one of each family."""

import math

import pytest
import tomli_w

from helpers.processes import command, finish
from rehearsal import checks
from rehearsal.benchmarks import corpus, write_problems
from rehearsal.checkpoints import write_untaught
from rehearsal.families import FAMILIES
from rehearsal.sizes import rehearsal_document

RECIPES = {"llada": "llada8b-diffu-grpo", "dream": "sudoku-llada8b-spg", "llada2": "gsm8k-llada8b-dispo"}
# Random networks solve nothing: completions are rewarded for what tells them apart.
REWARD = "def letters(completions, **_):\n    return [float(len(set(text))) for text in completions]\n"
SIZES = {
    "rollout": {"prompts": 2, "num_generations": 2, "max_new_tokens": 32, "steps": 4},
    "train": {"max_steps": 2, "examples": 4, "num_iterations": 2, "learning_rate": 1e-3},
    "evaluation": {"examples": 2, "examples_during": 2, "greedy_steps": 4},
}


@pytest.mark.long
@pytest.mark.parametrize("family", RECIPES)
def test_recipe_trains_an_untaught_stand_in(family, tmp_path):
    data, stand_in, log = tmp_path / "data", tmp_path / family, tmp_path / "log"
    write_problems(data, 0)
    write_untaught(FAMILIES[family], stand_in, corpus(data, 0), 0)
    (tmp_path / "letters.py").write_text(REWARD)
    document = rehearsal_document(RECIPES[family], stand_in, data)
    for section, sizes in SIZES.items():
        document[section] |= sizes
    document["reward"] = {"funcs": f"{tmp_path / 'letters.py'}:letters"}
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(document))
    run = tmp_path / "run"
    finish(command("train", "--recipe", str(tmp_path / "recipe.toml"), "--output", str(run), log=log), log)
    losses = [row["loss"] for row in checks.training_rows(run) if "loss" in row]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    checks.check_moved(run, stand_in)
    checks.check_layout(run, stand_in)
