"""`make check-gpu`: the same tokens, rewards and gradients on a GPU as on the CPU, and a bf16 training step.

Prints one line a check and ends with 1 if any fails. `--device cpu` runs the same checks without a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable

import torch

from unmask.build import build_trainer
from unmask.config import build
from unmask.denoisers.pretrained import load_denoiser
from unmask.recipe import Recipe
from unmask.sampling import Sampler
from unmask.types import Prompts
from unmask.uniforms import Uniforms

SMALL = {
    "rollout": {"prompts": 8, "group_size": 4, "temperature": 1.4},
    "train": {"steps": 3, "examples": 64, "updates": 2},
    "evaluation": {"examples": 16, "examples_during": 8},
}


def uniforms_agree(device: str) -> bool:
    """Keyed draws are the same bits on every device."""
    words = torch.arange(10_000)
    return torch.equal(Uniforms().key(words).draw(), Uniforms().key(words.to(device)).draw().cpu())


def samples_agree(device: str) -> bool:
    """At least 99 % of completions are the same (a draw within rounding of a boundary may fall on its other side)."""
    tokens = torch.randint(0, 5, (256, 16), generator=torch.Generator().manual_seed(0))
    count = torch.arange(len(tokens))
    sampler = Sampler(max_new_tokens=16, block_length=16, steps=4, temperature=1.0)
    results = []
    for place in ("cpu", device):
        denoiser = load_denoiser("embedded:sudoku").to(place).eval()
        prompts = Prompts(
            tokens_NP=tokens.to(place),
            attention_NP=torch.ones_like(tokens, dtype=torch.bool).to(place),
            prompt_N=count.to(place),
            sample_N=torch.zeros_like(count).to(place),
        )
        results.append(sampler(denoiser, prompts, Uniforms().key(1)).tokens_NL.cpu())
    return bool((results[0] == results[1]).all(1).float().mean() >= 0.99)


def training_runs(precision: str) -> Callable[[str], bool]:
    """Two training steps of every method give finite losses and gradients."""

    def check(device: str) -> bool:
        for method in ("diffu-grpo", "mdpo", "dispo"):
            document = SMALL | {"method": {"name": method}, "train": SMALL["train"] | {"precision": precision}}
            trainer = build_trainer(build(Recipe, document))
            for step in range(2):
                metrics, _ = trainer.step(step)
                if not 0 < metrics["grad_norm"] < float("inf"):
                    return False
        return True

    return check


CHECKS = {
    "keyed draws": uniforms_agree,
    "sampled completions": samples_agree,
    "training in float32": training_runs("fp32"),
    "training in bf16": training_runs("bf16"),
}


def main() -> int:
    """Run the checks on the device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--only", choices=list(CHECKS), help="run one check, in this process")
    options = parser.parse_args()
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing checked (--device cpu runs the checks without one)")
        return 1
    if options.only:
        return 0 if CHECKS[options.only](device) else 1
    failed = 0
    for name in CHECKS:  # a process each: the precision of a process is set once
        command = [sys.executable, __file__, "--device", device, "--only", name]
        code = subprocess.run(command, check=False).returncode  # noqa: S603
        failed += code != 0
        print(f"{'ok  ' if code == 0 else 'FAIL'} {name} on {device}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
