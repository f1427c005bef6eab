"""The example without the library is the library: equal tokens, rewards, log-probs, losses, gradients and weights."""

import ast
import importlib.util
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from unmask.config import build
from unmask.data import encode
from unmask.recipe import Recipe
from unmask.tasks.sudoku import is_solved, solution_grids
from unmask.train import build_trainer

FILE = Path(__file__).resolve().parents[2] / "examples" / "one_file_grpo.py"
TEMPERATURE, GROUP = 3.0, 4  # hot, so that some completions end early
PUZZLES = list(range(3))
METHOD = {"name": "diffu-grpo", "prompt_mask_prob": 0.3, "epsilon": 0.2, "beta": 0.1}
LEARNING_RATE = 2e-3


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("one_file_grpo", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trainer():
    """The library's, with a reference that is not the policy."""
    document = {
        "method": METHOD,
        "rollout": {"prompts": len(PUZZLES), "group_size": GROUP, "steps": 4, "temperature": TEMPERATURE},
        "train": {"examples": 16, "threads": 1},
        "evaluation": {"examples": 4, "examples_during": 4, "greedy_steps": 8},
    }
    trainer = build_trainer(build(Recipe, document))
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.policy.reference.parameters():
        parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return trainer


def rollout_of(trainer):
    """Completions of the library's sampler, and the keys of their draws."""
    uniforms = trainer.uniforms.key("iteration", 0)
    return trainer.rollout(PUZZLES, uniforms), uniforms


def test_it_stands_alone_and_is_short():
    text = FILE.read_text()
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= {"torch", "transformers", *sys.stdlib_module_names}
    assert len(text.splitlines()) < 300


def test_puzzles_and_verifier_are_the_librarys(example, trainer):
    assert sorted(example.full_grids()) == list(solution_grids())
    torch.manual_seed(0)
    puzzles = [example.draw_puzzle(list(solution_grids())) for _ in range(200)]
    assert all(8 <= puzzle.count("0") <= 12 for puzzle in puzzles)
    encode(trainer.tokenizer, puzzles)  # refuses what the tokenizer cannot spell
    rng, verdicts = Random(0), []
    for puzzle in puzzles:
        fitting = [grid for grid in solution_grids() if is_solved(puzzle, grid, 4)]
        for grid in (*rng.sample(fitting, 1), rng.choice(solution_grids()), "".join(rng.choices("01234", k=16))):
            cell = rng.randrange(16)
            spoilt = grid[:cell] + rng.choice("01234") + grid[cell + 1 :]
            for completion in (grid, spoilt, grid[:cell], grid + "1"):
                assert example.is_solved(puzzle, completion) == is_solved(puzzle, completion, 4)
                verdicts.append(is_solved(puzzle, completion, 4))
    assert 0 < sum(verdicts) < len(verdicts)


def test_sampler_draws_the_librarys_tokens_and_rewards_agree(example, trainer):
    rollout, uniforms = rollout_of(trainer)
    model, tokenizer = example.load(example.EMBEDDED_MODEL)
    key = uniforms.key("sample", rollout.prompt_N[:, None], rollout.sample_N[:, None])
    tokens_NL = example.sample(
        model,
        rollout.tokens_NL[:, : rollout.prompt_length],
        rollout.mask_id,
        length=16,
        steps=4,
        temperature=TEMPERATURE,
        uniforms=lambda step, samples, positions: key.key(step).key("token", torch.arange(positions)).draw(),
    )
    assert torch.equal(tokens_NL, rollout.tokens_NL)
