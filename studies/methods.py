"""Does every method learn? Each trained on the embedded Sudoku model, at equal rollouts and updates, beside a control.

    python studies/methods.py --output DIR [--only wd1,spg] [--seeds 1,2,3] [--threads 1]

For each method: seed 0 at each learning rate; the rate with the higher solve rate on a validation split is taken; fresh
seeds and one run with shuffled rewards at that rate. Runs are one line each of DIR/runs.jsonl, and those already there
are not repeated, so the study can be interrupted, or shared by processes with `--only`. Prints the table.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from unmask.cli.environment import prepare
from unmask.data.examples import Examples
from unmask.evaluation.evaluator import Evaluator
from unmask.methods import METHODS
from unmask.settings.reader import build
from unmask.settings.recipe import Recipe
from unmask.settings.recipe_files import read_recipe
from unmask.training.build import build_trainer
from unmask.training.trainer import Trainer
from unmask.uniforms import Uniforms

LEARNING_RATES = (3e-5, 1e-4)
SELECTION_SEED, VALIDATION_SEED, TEST_SEED = 0, 7, 1  # of the choosing run; of held-out puzzles
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, by number of seeds


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run: solve rates sampled as in training, before and after."""

    method: str
    learning_rate: float
    seed: int
    shuffled: bool
    before: float
    after: float
    reward: float  # mean of the last fifth of the steps
    seconds: float  # of training


def settings_of(method: str, learning_rate: float, seed: int, shuffled: bool, arguments: argparse.Namespace) -> Recipe:
    """The method's recipe with the study's common rollouts, updates and schedule."""
    recipe: Recipe = build(Recipe, read_recipe(f"sudoku-{method}"))
    train = replace(
        recipe.train,
        max_steps=arguments.steps,
        num_iterations=1,
        learning_rate=learning_rate,
        final_fraction=1.0,
        seed=seed,
        shuffle_rewards=shuffled,
        threads=arguments.threads,
    )
    return replace(recipe, train=train, rollout=replace(recipe.rollout, prompts=16, num_generations=8))


def held_out(trainer: Trainer, seed: int, count: int) -> float:
    """Solve rate of the policy on held-out puzzles of `seed`, sampled as in training."""
    task, denoiser = trainer.recipe.task, trainer.objective.denoiser
    room = denoiser.max_length - trainer.sampler.max_new_tokens
    evaluator = Evaluator(
        task=task,
        tokenizer=trainer.tokenizer,
        examples=Examples.of(task.examples("test", count, seed), trainer.tokenizer, denoiser.eos_id, room),
        uniforms=Uniforms().key("evaluation", seed),
        batch=250,
        device=trainer.objective.world.device,
    )
    return fmean(evaluator.metrics(denoiser, trainer.sampler)["solved"])


def run(recipe: Recipe, held_out_seed: int, count: int, before: float | None) -> Outcome:
    """Train once and measure; the base's rate too where it is not known."""
    trainer = build_trainer(recipe)
    if before is None:
        before = held_out(trainer, held_out_seed, count)
    started = time.monotonic()
    rewards = [trainer.step(step)[0]["reward"] for step in range(recipe.train.max_steps)]
    seconds = time.monotonic() - started
    return Outcome(
        method=recipe.method.name,
        learning_rate=recipe.train.learning_rate,
        seed=recipe.train.seed,
        shuffled=recipe.train.shuffle_rewards,
        before=before,
        after=held_out(trainer, held_out_seed, count),
        reward=fmean(rewards[-max(1, len(rewards) // 5) :]),
        seconds=seconds,
    )


class Study:
    """The runs so far, and those that are missing."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.path = Path(arguments.output) / "runs.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def outcomes(self) -> list[Outcome]:
        """All runs on record."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return [Outcome(**json.loads(line)) for line in lines]

    def outcome(self, method: str, learning_rate: float, seed: int, shuffled: bool = False) -> Outcome:
        """The run, from the record or made now."""
        wanted = (method, learning_rate, seed, shuffled)
        for known in self.outcomes():
            if (known.method, known.learning_rate, known.seed, known.shuffled) == wanted:
                return known
        recipe = settings_of(method, learning_rate, seed, shuffled, self.arguments)
        held_out_seed = VALIDATION_SEED if seed == SELECTION_SEED else TEST_SEED
        made = run(recipe, held_out_seed, self.arguments.examples, self._before(method, seed))
        with self.path.open("a") as stream:
            stream.write(json.dumps(asdict(made)) + "\n")
        print(made, flush=True)
        return made

    def _before(self, method: str, seed: int) -> float | None:
        """The base's solve rate, if a run of the method on the same puzzles has measured it."""
        same = (known for known in self.outcomes() if known.method == method)
        return next(
            (known.before for known in same if (known.seed == SELECTION_SEED) == (seed == SELECTION_SEED)), None
        )

    def chosen_rate(self, method: str) -> float:
        """The learning rate with the higher validation solve rate after training on seed 0."""
        return max(LEARNING_RATES, key=lambda rate: self.outcome(method, rate, SELECTION_SEED).after)

    def row(self, method: str) -> str:
        """A line of the table."""
        rate = self.chosen_rate(method)
        fresh = [self.outcome(method, rate, seed) for seed in self.arguments.seeds]
        control = self.outcome(method, rate, self.arguments.seeds[0], shuffled=True)
        gains = [100 * (outcome.after - outcome.before) for outcome in fresh]
        spread = T_95.get(len(gains), float("nan")) * stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        mean = fmean(gains)
        return (
            f"| {method} | {rate:.0e} | {fresh[0].before:.1%} → {fmean(o.after for o in fresh):.1%} | {mean:+.1f} "
            f"({mean - spread:+.1f} to {mean + spread:+.1f}) | {', '.join(f'{gain:+.1f}' for gain in gains)} | "
            f"{100 * (control.after - control.before):+.1f} | {fmean(o.seconds for o in fresh):.0f} s |"
        )


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--only", default=",".join(METHODS), help="methods, by commas")
    parser.add_argument("--seeds", default="1,2,3", help="fresh seeds, by commas")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    arguments.seeds = [int(seed) for seed in arguments.seeds.split(",")]
    prepare(arguments.threads)
    study = Study(arguments)
    rows = [study.row(method) for method in arguments.only.split(",")]
    print("| method | learning rate | sampled | gain (95 % over seeds) | by seed | shuffled rewards | training |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
