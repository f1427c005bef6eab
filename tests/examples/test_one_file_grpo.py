"""The example without the library is the library: equal tokens, rewards, log-probs, losses, gradients and weights."""

import ast
import importlib.util
import sys
from pathlib import Path
from random import Random

import pytest
import torch

from unmask.data.tokenization import completion_texts, encode
from unmask.objective.masks import mask_prompt
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.tasks.sudoku import is_solved, solution_grids
from unmask.training.build import build_trainer

FILE = Path(__file__).resolve().parents[2] / "examples" / "one_file_grpo.py"
TEMPERATURE, GROUP = 3.0, 4  # hot, so that some completions end early
PUZZLES = list(range(3))
METHOD = {"name": "diffu-grpo", "prompt_mask_prob": 0.3, "epsilon": 0.2, "beta": 0.1}
LEARNING_RATE = 2e-3
REWARDS_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])


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
        "rollout": {"prompts": len(PUZZLES), "num_generations": GROUP, "steps": 4, "temperature": TEMPERATURE},
        "train": {"examples": 16, "threads": 1},
        "evaluation": {"examples": 4, "examples_during": 4, "greedy_steps": 8},
    }
    trainer = build_trainer(build(Recipe, document))
    generator = torch.Generator().manual_seed(0)
    for parameter in trainer.objective.reference.parameters():
        parameter.add_(0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator))
    return trainer


def rollout_of(trainer):
    """Completions of the library's sampler, and the keys of their draws."""
    uniforms = trainer.uniforms.key("iteration", 0)
    return trainer.source.rollout(trainer.objective.denoiser, PUZZLES, uniforms), uniforms


def test_one_file_grpo_stands_alone_and_is_short():
    text = FILE.read_text()
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
    assert names <= {"torch", "transformers", *sys.stdlib_module_names}
    assert len(text.splitlines()) < 300


def test_one_file_grpo_puzzles_and_verifier_are_the_librarys(example, trainer):
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


def test_one_file_grpo_sampler_draws_the_librarys_tokens(example, trainer):
    rollout, uniforms = rollout_of(trainer)
    model, _ = example.load(example.EMBEDDED_MODEL)
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


def test_one_file_grpo_rewards_are_the_librarys(example, trainer):
    rollout, _ = rollout_of(trainer)
    items = [trainer.source.examples.items[index] for index in PUZZLES for _ in range(GROUP)]
    solutions_NC = torch.tensor(encode(trainer.tokenizer, [item.solution for item in items]))
    ended_NC = solutions_NC.clone()
    ended_NC[:, -1] = trainer.source.examples.eos_id
    completions_NC = torch.cat([rollout.tokens_NL[:, rollout.prompt_length :], solutions_NC, ended_NC])
    puzzles = [item.prompt for item in items] * 3
    texts = completion_texts(trainer.tokenizer, completions_NC.tolist(), trainer.source.examples.eos_id)
    expected = trainer.recipe.task.rewards(puzzles, texts, puzzle=puzzles)
    assert example.rewards(puzzles, completions_NC, trainer.tokenizer).tolist() == expected
    assert 0 < sum(expected) < len(expected)


@pytest.mark.parametrize("updates", [1, 2])
def test_one_file_grpo_updates_are_the_librarys(example, trainer, updates):
    """Given the library's completions and prompt masks; the second update has ratios beyond the clip range.

    AdamW divides gradients by their size plus epsilon: with the usual 1e-8, those too that are rounding.
    """
    rollout, uniforms = rollout_of(trainer)
    (group,) = trainer.updater.optimizer.param_groups
    group["eps"] = epsilon = 1e-3
    objective, mask_id, end_id = trainer.objective, rollout.mask_id, trainer.source.examples.eos_id
    tokens_NL, start = rollout.tokens_NL, rollout.prompt_length
    assert bool((tokens_NL == end_id).any())
    update_batches = objective.prepare(rollout, [REWARDS_PG], uniforms, updates)
    masks = [
        mask_prompt(rollout, METHOD["prompt_mask_prob"], uniforms, update, shared=False)[:, :start]
        for update in range(updates)
    ]
    model, reference = (example.load(example.EMBEDDED_MODEL)[0] for _ in range(2))
    reference.load_state_dict(objective.reference.model.state_dict())
    advantage_N = example.group_advantages(REWARDS_PG.flatten(), GROUP)
    counted_NC = example.counted_tokens(tokens_NL[:, start:], end_id)
    for (update_batch,), mask_NP in zip(update_batches, masks, strict=True):
        batch = update_batch.batch
        assert torch.equal(advantage_N, batch.advantage_U)
        assert torch.equal(counted_NC, batch.scored_RL[:, start:])
        answers = (
            (model, update_batch.term.answers(objective.denoiser, batch)),
            (reference, update_batch.reference_RL),
        )
        for ours, theirs_RL in answers:
            logp_NC = example.one_step_logp(ours, tokens_NL, mask_NP, mask_id)
            torch.testing.assert_close(logp_NC * counted_NC, theirs_RL[:, start:], rtol=1e-5, atol=1e-6)
    expected = [trainer.updater.update(update_batch, LEARNING_RATE) for update_batch in update_batches]
    history = example.learn(
        model,
        reference,
        torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), eps=epsilon, weight_decay=0.0),
        tokens_NL,
        advantage_N,
        masks,
        mask_id=mask_id,
        end_id=end_id,
        epsilon=METHOD["epsilon"],
        beta=METHOD["beta"],
        max_grad_norm=trainer.recipe.train.max_grad_norm,
    )
    for (loss, norm), metrics in zip(history, expected, strict=True):
        assert loss == pytest.approx(metrics["loss"], rel=1e-5)
        assert norm == pytest.approx(metrics["grad_norm"], rel=1e-5)
    assert all(metrics["clip_ratio/region_mean"] > 0.1 for metrics in expected[1:])
    for ours, theirs in zip(model.parameters(), objective.denoiser.parameters(), strict=True):
        # The library writes gradients out (softmax, norms, rotations), autograd rounds otherwise.
        torch.testing.assert_close(
            ours.grad, theirs.grad, rtol=1e-5, atol=updates * 2e-5 * float(theirs.grad.abs().max())
        )
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-3 * LEARNING_RATE)


def test_one_file_grpo_command_prints_a_line_a_step(example, capsys):
    example.main(["--steps", "2", "--prompts", "4", "--group-size", "4"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [["step", "1", "reward"], ["step", "2", "reward"]]
