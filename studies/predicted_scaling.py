"""Predicted strong and weak scaling of a recipe: `unmask plan` on more and more GPUs, as a Markdown table.

    python studies/predicted_scaling.py llada8b-mdpo --gpu h100 --utilisation 0.4

A step is what one GPU computes, plus every message with nothing beside it: an upper bound of the time at the stated
utilisation and bandwidths. Strong: the recipe's prompts shared by more GPUs. Weak: as many for each GPU.
"""

from __future__ import annotations

import argparse
from typing import Any

from unmask.plan.estimate import costs, work_on
from unmask.plan.gpus import gpus_of
from unmask.plan.layout import Layout
from unmask.plan.memory import computing_dtype
from unmask.plan.networks import size_of
from unmask.plan.traffic import transfers_of
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build
from unmask.settings.recipe_files import read_recipe

GPUS = (8, 16, 32, 64)
HEADER = ("GPUs", "groups x shard", "prompts", "compute s", "messages s", "step s", "completions/s", "of 8 GPUs'")


def predicted(settings: PlanSettings, shard: int) -> tuple[Layout, float, float]:
    """The layout, seconds of computing and seconds of messages of a step; memory is `unmask plan`'s to tell."""
    train = settings.train
    gpus = gpus_of(settings)
    size = size_of(settings.model, train.param_dtype, train.lora_rank, settings.model_format)
    _, work = work_on(settings, settings.method, gpus, size)
    layout = Layout(ranks=gpus.count, shard=min(shard or 1, gpus.count), node=gpus.node)
    transfers = transfers_of(layout, size, work, computing_dtype(settings))
    _, seconds = costs(settings, work, size, gpus)
    return layout, seconds.step, sum(transfer.seconds(gpus.network) for transfer in transfers)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--shard", type=int, default=8, help="GPUs that weights are split over, at most; 0: none")
    parser.add_argument("--utilisation", type=float, default=0.4)
    parser.add_argument("--network", type=float, default=40.0)
    parser.add_argument("--prompts", type=int, default=64, help="of a step; weak scaling: on 8 GPUs")
    options = parser.parse_args()
    document: dict[str, Any] = read_recipe(options.recipe)
    stated = {name: getattr(options, name) for name in ("gpu", "utilisation", "network")}
    for title, each in (("strong", 0), ("weak", options.prompts // GPUS[0])):
        print(f"\n{options.recipe}, {title} scaling\n\n| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}")
        first = 0.0
        for gpus in GPUS:
            prompts = each * gpus or options.prompts
            rollout = document["rollout"] | {"prompts": prompts}
            settings = build(PlanSettings, document | stated | {"gpus": f"{gpus}x80GB", "rollout": rollout})
            layout, compute, messages = predicted(settings, options.shard)
            rate = prompts * settings.rollout.num_generations / (compute + messages)
            first = first or rate / gpus
            cells = (f"{layout.replicas} x {layout.shard}", prompts, f"{compute:.1f}", f"{messages:.1f}")
            figures = (f"{compute + messages:.1f}", f"{rate:.2f}", f"{rate / gpus / first:.0%}")
            print(f"| {' | '.join(map(str, (gpus, *cells, *figures)))} |", flush=True)


if __name__ == "__main__":
    main()
