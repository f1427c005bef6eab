"""Shipped recipes: every method has one for the embedded model and one for LLaDA-8B with its paper's settings."""

from dataclasses import asdict

import pytest

from unmask.methods import METHODS
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe, recipe_names

# What each paper says of its rollouts and updates: group, temperature, rate, updates a batch.
PUBLISHED = {
    "diffu-grpo": (6, 0.9, 3e-6, 8),
    "wd1": (6, 0.9, 3e-6, 8),
    "coupled-grpo": (10, 1.0, 1e-6, 2),
    "spg": (6, 0.9, 3e-6, 4),
    "gdpo": (6, 0.9, 3e-7, 12),
    "espo": (6, 1.0, 3e-6, 8),
    "just-grpo": (16, 1.0, 5e-6, 1),
    "vrpo": (2, 1.0, 5e-7, 1),
    "mdpo": (8, 0.4, 7e-7, 1),
    "dispo": (6, 0.9, 3e-6, 8),
    "tracerl": (8, 0.8, 1e-6, 1),
    "d2": (6, 0.9, 3e-6, 8),
}


def shipped(name) -> Recipe:
    return build(Recipe, read_recipe(name))


@pytest.mark.parametrize("name", METHODS)
def test_read_recipe_has_one_of_every_method_for_the_embedded_model(name):
    recipe = shipped(f"sudoku-{name}")
    assert recipe.method.name == name
    assert recipe.model == "embedded:sudoku"
    recipe.rollout.sampler(recipe.task)


@pytest.mark.parametrize("name", METHODS)
def test_read_recipe_has_one_of_every_method_for_llada_with_its_paper_s_settings(name):
    recipe = shipped(f"llada8b-{name}")
    assert recipe.method.name == name
    assert recipe.model == "GSAI-ML/LLaDA-8B-Instruct"
    assert recipe.rollout.sampler(recipe.task).max_new_tokens in (256, 512)
    rollout, train = recipe.rollout, recipe.train
    settings = (rollout.num_generations, rollout.temperature, train.learning_rate, train.num_iterations)
    assert settings == PUBLISHED.get(name, settings)
    if name != "espo":  # its Countdown recipe clips at 0
        assert asdict(recipe.method) == asdict(METHODS[name]())


def test_build_reads_every_shipped_recipe():
    for name in recipe_names("train"):
        shipped(name)


WORDED = ("countdown-words", "sudoku-words", "gsm8k", "math500")


@pytest.mark.parametrize("name", [name for name in recipe_names("train") if "llada8b" in name])
def test_llada_recipes_ask_in_words(name):
    assert shipped(name).task.name in WORDED


def test_sudoku_recipes_show_as_many_solved_puzzles_as_their_papers():
    assert shipped("sudoku-llada8b-spg").task.few_shot == 3  # SPG 2510.09541
    assert shipped("sudoku-llada8b-dispo").task.few_shot == 0  # DiSPO 2602.06462
    assert shipped("sudoku-llada8b-dispo-spg").task.few_shot == 0
