"""The directory of a run without the run: recipe, metrics and a record of any size, with texts of any kind."""

import json
from pathlib import Path

import numpy as np
import tomli_w

from unmask.report.record import Group, record_path, write_groups
from unmask.settings.reader import build, document_of
from unmask.settings.recipe import Recipe

ODD = [
    "</script><img src=x onerror=window.hit=1>",
    "\u202eright to left\u202c \u200f",
    "مرحبا",
    "👩‍👩‍👧🙂",
    "\x00\x01\x1b[31m",
    "line\nbreak\ttab",
    "<!-- <script>window.hit=1</script>",
    "${window.hit=1} {{data}} \u2028",
    "�",
]


def group(
    *, samples=2, columns=8, steps=4, seed=0, vocabulary=(), guesses=False, remasking=False, terms=True, texts=None
) -> Group:
    """A group of completions of random tokens, revealed in random steps, each with two trained rows."""
    draw = np.random.default_rng(seed)
    words = ["<mask>", *(vocabulary or [f"w{number} " for number in range(50)])]
    shape = (samples, columns)
    arrays = {
        "token_NC": draw.integers(1, len(words), shape).astype(np.uint16),
        "revealed_at_NC": draw.integers(0, steps, shape).astype(np.int16),
        "logp_NC": (-draw.random(shape) * 4).astype(np.float16),
        "confidence_NC": draw.random(shape).astype(np.float16),
        "length_N": np.full(samples, columns, dtype=np.int32),
        "reward_N": (np.arange(samples) % 2).astype(np.float32),
        "token_id_V": np.arange(len(words), dtype=np.int32) + 1000,
    }
    if guesses or remasking:
        arrays |= _snapshots(draw, arrays, steps, len(words))
    if terms:
        arrays |= _rows(draw, arrays)
    about = {
        "prompt": "What is 6 * 7?",
        "texts": texts or ["".join(words[token] for token in row) for row in arrays["token_NC"].tolist()],
        "vocabulary": words,
        "columns": 0,
        "mask": 0,
        "steps": steps,
        "temperature": 1.0,
        "remasking": remasking,
    }
    if terms:
        about["terms"] = [{"rows": "guesses at a recorded state", "unit": "branch", "coefficient": 0.5}]
    if guesses:
        about["over_denoised"] = [sample == 0 for sample in range(samples)]
    return Group(about=about, arrays=arrays)


def _snapshots(draw, arrays, steps, words):
    samples, columns = arrays["token_NC"].shape
    step_S11 = np.arange(steps)[:, None, None]
    masked_SNC = arrays["revealed_at_NC"][None] >= step_S11
    guess_SZNC = draw.integers(1, words, (steps, 1, samples, columns)).astype(np.uint16)
    reward_NE = draw.random((samples, steps)).astype(np.float32)
    reward_NE[0, 0] = 1
    return {
        "step_SN": np.broadcast_to(step_S11[:, 0], (steps, samples)).astype(np.int16),
        "canvas_SNC": np.where(masked_SNC, 0, arrays["token_NC"][None]).astype(np.uint16),
        "guess_SZNC": guess_SZNC,
        "guess_confidence_SZNC": draw.integers(0, 256, guess_SZNC.shape).astype(np.uint8),
        "guess_reward_NE": reward_NE,
    }


def _rows(draw, arrays):
    samples, columns = arrays["token_NC"].shape
    masked = draw.random((2 * samples, columns)) < 0.5
    count = int(masked.sum())
    return {
        "row_sample_R": np.repeat(np.arange(samples), 2).astype(np.int32),
        "row_term_R": np.zeros(2 * samples, dtype=np.uint8),
        "row_advantage_R": np.where(np.arange(2 * samples) % 2, -0.5, 0.5).astype(np.float32),
        "row_prompt_masks_R": np.ones(2 * samples, dtype=np.int32),
        "row_masked_RB": np.packbits(masked, axis=1, bitorder="little"),
        "row_scored_RB": np.packbits(masked, axis=1, bitorder="little"),
        "row_weight_W": np.full(count, 0.25, dtype=np.float32),
        "row_target_W": np.repeat(arrays["token_NC"], 2, axis=0)[masked].astype(np.uint16),
    }


def write_run(directory: Path, *, steps=20, every=5, seed=0, gain=0.2, groups=None, done=True, **settings) -> Path:
    """A run directory of so many training steps; `groups`: step -> its groups."""
    directory.mkdir(parents=True)
    recipe = build(Recipe, {"train": {"max_steps": steps, "seed": seed}} | settings)
    (directory / "recipe.toml").write_text(tomli_w.dumps(document_of(recipe)))
    with (directory / "metrics.jsonl").open("w") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in _metrics(steps, gain, done))
    write_ranks(directory)
    draw = np.random.default_rng(1)
    before = (draw.random(100) < 0.5).astype(float).tolist()
    after = [max(value, float(better)) for value, better in zip(before, draw.random(100) < gain, strict=True)]
    (directory / "before.json").write_text(json.dumps({"greedy_4/solved": before}))
    if done:
        (directory / "after.json").write_text(json.dumps({"greedy_4/solved": after}))
        (directory / "summary.json").write_text(json.dumps(_summary(before, after)))
    for step in [1, *range(every, steps + 1, every)]:
        made = [group(seed=step)] if groups is None else groups(step)
        write_groups(record_path(directory, "step", step), made)
    for step in range(0, steps + 1, 10):
        seen = group(samples=1, seed=step, terms=False)
        seen.about["label"] = "greedy, 4 steps"
        write_groups(record_path(directory, "evaluation", step), [seen])
    return directory


def write_ranks(directory: Path) -> None:
    row = {"first_step": 0, "ranks": 1, "device": "cpu", "environment": {"commit": "abc", "torch": "2"}}
    (directory / "ranks.jsonl").write_text(json.dumps(row) + "\n")


def metrics_row(step: int) -> dict:
    return {
        "step": step,
        "loss": 0.1,
        "reward": 0.5 + step / 1000,
        "entropy": 1 / step,
        "frac_reward_zero_std": 0.25,
        "step_seconds/rollout": 0.5,
        "step_seconds/scoring": 0.1,
        "step_seconds/update": 0.3,
    }


def _metrics(steps, gain, done):
    for step in range(steps + 1):
        if step:
            yield metrics_row(step)
        if step % 10 == 0 and (done or step < steps):
            rate = 0.5 + gain * step / steps
            yield {
                "step": step,
                **{f"eval/greedy_4/solved{end}": rate + off for end, off in (("", 0), ("_low", -0.1), ("_high", 0.1))},
            }
        if step == 7:
            yield {"step": 7, "warning": "reward is collapsing: lower learning_rate <b>now</b>"}


def _summary(before, after):
    from unmask.evaluation.statistics import paired_interval, solved_summary

    gain, low, high = paired_interval(before, after)
    figures = {
        "before": solved_summary(before),
        "after": solved_summary(after),
        "gain": gain,
        "gain_low": low,
        "gain_high": high,
    }
    return {"method": "dispo", "steps": 20, "greedy_4": figures}
