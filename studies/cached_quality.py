"""What cached and parallel rollouts cost in truth, on the trained models that ship with the package.

    python studies/cached_quality.py [--examples 500] [--markdown FILE]

For each caching rule, and for parallel thresholds: the speed against exact steps (one thread, CPU time, medians), the
share of equal tokens, the solve rate with its 95 % interval and its change in paired samples, and the mean mismatch
between the log-probs recorded in sampling and those of scoring the same canvases again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import allocator

SETTINGS = {  # model: task settings, tokens, block, steps
    "embedded:sudoku": ({"name": "sudoku"}, 16, 8, 16),
    "embedded:arithmetic": ({"name": "arithmetic", "terms": 3, "max_number": 5}, 16, 8, 16),
    "embedded:countdown": ({"name": "countdown", "max_number": 9, "max_target": 40}, 16, 8, 16),
}
HEADER = ("model", "rollout", "times faster", "equal tokens", "solved", "change, in pairs", "mismatch, nats a token")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=500, help="held-out items of each task")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of timing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there, too")
    return parser.parse_args()


def samplers(length: int, block: int, steps: int) -> dict[str, Any]:
    """Exact steps first, then what approximates them."""
    from unmask.sampling.caching import CACHINGS
    from unmask.sampling.sampler import Sampler
    from unmask.sampling.unmasking import Threshold

    exact = Sampler(max_new_tokens=length, block_length=block, steps=steps, temperature=1.0)
    rules = {name: replace(exact, caching=caching) for name, caching in CACHINGS.items()}
    rules["threshold 0.9"] = replace(exact, unmasking=Threshold(threshold=0.9))
    rules["threshold 0.9, dual"] = replace(rules["threshold 0.9"], caching=CACHINGS["dual"])
    return rules


def measured(model: str, count: int, rounds: int) -> list[tuple[str, ...]]:
    """The lines of one model."""
    from unmask.data.examples import Examples, rollout_texts
    from unmask.denoisers.loading import load_denoiser, load_tokenizer
    from unmask.distributed import World
    from unmask.evaluation.statistics import paired_interval, solved_summary
    from unmask.settings.commands import EvaluateSettings
    from unmask.settings.reader import build
    from unmask.training.mismatch import sampling_mismatch
    from unmask.uniforms import Uniforms

    task_settings, length, block, steps = SETTINGS[model]
    task = build(EvaluateSettings, {"task": task_settings}).task
    tokenizer, denoiser = load_tokenizer(model), load_denoiser(model).eval()
    items = task.examples("test", count, seed=1)
    examples = Examples.of(items, tokenizer, denoiser.eos_id, denoiser.max_length - length)
    prompts = examples.prompts(range(len(items)), 1)
    rules = samplers(length, block, steps)
    seconds: dict[str, list[float]] = {name: [] for name in rules}
    rollouts: dict[str, Any] = {}
    order = random.Random(0)  # noqa: S311
    for _ in range(rounds + 1):
        for name in order.sample(list(rules), len(rules)):
            start = time.process_time()
            rollouts[name] = rules[name](denoiser, prompts, Uniforms().key("quality"))
            seconds[name].append(time.process_time() - start)
    solved, lines = {}, []
    for name, rollout in rollouts.items():
        texts = rollout_texts(tokenizer, rollout, examples)
        words = [item.prompt for item in items]
        solved[name] = task.metrics(words, texts, **examples.columns(range(len(items)), 1))["solved"]
    for name in rules:
        rollout, exact = rollouts[name], rollouts["none"]
        gap = sampling_mismatch(denoiser, rollout, Uniforms(), World.single())["sampling/logp_gap"]
        same = (rollout.tokens_NL == exact.tokens_NL)[:, rollout.prompt_length :].float().mean()
        summary = solved_summary(solved[name])
        change, low, high = (100 * value for value in paired_interval(solved["none"], solved[name]))
        pairs = zip(seconds["none"][1:], seconds[name][1:], strict=True)
        ratio = median(theirs / ours for theirs, ours in pairs)
        rate, bottom, top = (100 * summary[key] for key in ("solved", "solved_low", "solved_high"))
        lines.append(
            (
                model,
                "exact" if name == "none" else name,
                f"{ratio:.2f}",
                f"{100 * same:.1f} %",
                f"{rate:.1f} % ({bottom:.1f} to {top:.1f})",
                "" if name == "none" else f"{change:+.1f} ({low:+.1f} to {high:+.1f})",
                f"{gap:.1e}",
            )
        )
    return lines


def main() -> None:
    """Print the table."""
    options = _options()
    allocator.tune()
    import torch
    from rich.console import Console
    from rich.table import Table

    torch.set_num_threads(1)
    lines = [line for model in SETTINGS for line in measured(model, options.examples, options.rounds)]
    table = Table(*HEADER, title=f"temperature 1, {options.examples} held-out items")
    for line in lines:
        table.add_row(*line)
    Console(width=140).print(table)
    if options.markdown:
        rows = [HEADER, ("---",) * len(HEADER), *lines]
        options.markdown.write_text("".join("| " + " | ".join(row) + " |\n" for row in rows))


if __name__ == "__main__":
    main()
