"""Real weights: the end of antibody heavy chains made to like water, with and without staying near the base model.

    python studies/real_weights.py antiberty --output models/antiberty
    python studies/antibody.py --model models/antiberty --output DIR [--betas 0.04,0] [--steps 40] [--threads 1]

Prompts are variable regions up to the third loop, written by the model itself from the first residues of human germline
genes; the model writes the 24 residues that follow. Trains on eight of them, once for each weight of the divergence
from the base, then measures two completions of every prompt: the reward, and how likely the base finds what was
written. Draws the curves.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch

from unmask.cli.environment import prepare
from unmask.cli.main import main as unmask
from unmask.data.example import Example
from unmask.data.examples import Examples, rollout_texts
from unmask.denoisers.base import Denoiser
from unmask.denoisers.loading import load_denoiser, load_tokenizer
from unmask.sampling.sampler import Sampler
from unmask.sampling.unmasking import Random
from unmask.training.supervised import SupervisedBatch, elbo_loss
from unmask.uniforms import Uniforms

ROOT = Path(__file__).parents[1]
GERMLINE = (
    "EVQLVESGGGLVQPGG",
    "QVQLVQSGAEVKKPGA",
    "QVQLQESGPGLVKPSE",
    "EVQLLESGGGLVQPGG",
    "QVQLVESGGGVVQPGR",
    "QLQLQESG",
)
WRITTEN, LOOP = 24, "YYC"  # residues to write; the conserved end of the second framework


def texts_of(denoiser: Denoiser, tokenizer, prompts: list[str], sampler: Sampler, key: str) -> tuple[list[str], list]:
    """Completions of the prompts, ten at a time, and the rollouts."""
    items = [Example(prompt=prompt, solution="", columns={}) for prompt in prompts]
    examples = Examples.of(items, tokenizer, denoiser.eos_id, denoiser.max_length - sampler.max_new_tokens)
    texts, rollouts = [], []
    for start in range(0, len(prompts), 10):
        part = range(start, min(start + 10, len(prompts)))
        rollouts.append(sampler(denoiser, examples.prompts(part, 1), Uniforms().key(key)))
        texts += rollout_texts(tokenizer, rollouts[-1], examples)
    return texts, rollouts


def write_prompts(model: str, path: Path, count: int) -> None:
    """Distinct variable regions from the first residues of germline genes."""
    denoiser, tokenizer = load_denoiser(model).eval(), load_tokenizer(model)
    sampler = Sampler(max_new_tokens=96, block_length=96, steps=16, temperature=1.0, unmasking=Random())
    found: dict[str, None] = {}
    for attempt in range(8):
        starts = [GERMLINE[place % len(GERMLINE)] for place in range(count // 2)]
        starts = ["[CLS]" + start for start in starts]
        texts, _ = texts_of(denoiser, tokenizer, starts, sampler, f"prompts {attempt}")
        for start, text in zip(starts, texts, strict=True):
            head, loop, _ = (start + text.replace(" ", "")).rpartition(LOOP)
            if 85 < len(head) < 110 and "[" not in head[5:]:
                found[head + loop] = None
        if len(found) >= count:
            break
    rows = [json.dumps({"prompt": prompt}) for prompt in list(found)[:count]]
    path.write_text("\n".join(rows) + "\n")
    print(f"{len(rows)} prompts: {path}", flush=True)


def train(model: str, prompts: Path, beta: float, arguments: argparse.Namespace, directory: Path) -> None:
    """The command a user would type."""
    settings = {
        "model": model,
        "task": "dataset",
        "task.data": prompts,
        "task.max-new-tokens": WRITTEN,
        "reward.funcs": f"{ROOT / 'examples' / 'hydrophilic.py'}:hydrophilic",
        "method": "d2",
        "method.segments": 3,
        "method.beta": beta,
        "rollout.prompts": 2,
        "rollout.num-generations": 8,
        "rollout.steps": 6,
        "rollout.temperature": 1.0,
        "train.max_steps": arguments.steps,
        "train.examples": 8,
        "train.learning-rate": arguments.learning_rate,
        "train.warmup-steps": 5,
        "train.eval-steps": arguments.steps,
        "train.save-steps": arguments.steps,
        "train.threads": arguments.threads,
        "evaluation.greedy-steps": 6,
    }
    flags = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    if unmask(["train", *flags, "--output", str(directory)]):
        raise SystemExit("the run failed: see above")


@dataclass(frozen=True)
class Measured:
    """Completions of a model, sampled as in training."""

    reward: float
    reward_stderr: float
    base_nats: float  # per residue: the base's bound on minus the log-likelihood of what the model wrote
    example: str


@torch.no_grad()
def measure(model: str, base: Denoiser, prompts: list[str]) -> Measured:
    """Reward, and the bound of the base on what the model wrote, with the same masks for every model."""
    sys.path.insert(0, str(ROOT / "examples"))
    from hydrophilic import hydrophilic

    denoiser, tokenizer = load_denoiser(model).eval(), load_tokenizer(model)
    sampler = Sampler(max_new_tokens=WRITTEN, block_length=WRITTEN, steps=6, temperature=1.0)
    texts, rollouts = texts_of(denoiser, tokenizer, prompts, sampler, "measure")
    rewards = hydrophilic(texts)
    bounds = []
    for place, rollout in enumerate(rollouts):
        batch = SupervisedBatch(
            tokens_NL=rollout.tokens_NL,
            attention_NL=rollout.attention_NL,
            example_N=rollout.prompt_N,
            prompt_length=rollout.prompt_length,
        )
        bounds += [float(elbo_loss(base, batch, Uniforms().key("bound", place, draw))) for draw in range(4)]
    spread = stdev(rewards) / len(rewards) ** 0.5
    return Measured(fmean(rewards), spread, fmean(bounds), texts[0].replace(" ", ""))


def draw(directories: dict[str, Path], path: Path) -> None:
    """Reward and divergence over training."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    for name, directory in directories.items():
        rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        rows = [row for row in rows if "reward" in row]
        steps = [row["step"] for row in rows]
        left.plot(steps, [row["reward"] for row in rows], label=name)
        if "kl" in rows[0]:
            right.plot(steps, [row["kl"] for row in rows], label=name)
    left.set(xlabel="training step", ylabel="reward")
    right.set(xlabel="training step", ylabel="k3 to the base, nats a token")
    left.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Prompts, runs, measurements, picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--betas", default="0.04,0", help="weights of the divergence from the base, by commas")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=3e-5)
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    prepare(arguments.threads)
    arguments.output.mkdir(parents=True, exist_ok=True)
    prompts = arguments.output / "prompts.jsonl"
    if not prompts.exists():
        write_prompts(arguments.model, prompts, arguments.prompts)
    runs = {f"beta {beta}": arguments.output / f"beta-{beta}" for beta in arguments.betas.split(",")}
    for name, directory in runs.items():
        if not directory.exists():
            train(arguments.model, prompts, float(name.split()[1]), arguments, directory)
    draw(runs, arguments.output / "antibody.png")
    base = load_denoiser(arguments.model).eval()
    measured_prompts = [json.loads(line)["prompt"] for line in prompts.read_text().splitlines()] * 2
    models = {"base": arguments.model} | {
        name: str(directory / "checkpoints" / f"step_{arguments.steps:06d}") for name, directory in runs.items()
    }
    for name, model in models.items():
        print(name, measure(model, base, measured_prompts), flush=True)


if __name__ == "__main__":
    main()
