"""The subcommands of `unmask`: settings, arguments and help of each, and what it calls."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from unmask.cli import commands
from unmask.settings.commands import (
    EvaluateSettings,
    OracleSettings,
    PlanSettings,
    PretrainRecipe,
    SampleSettings,
)
from unmask.settings.idle import idle_in_evaluation, idle_in_recipe
from unmask.settings.recipe import Recipe


@dataclass(frozen=True)
class NoSettings:
    """The settings of a command that has arguments only."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand: its settings class, what is called with settings and options, and arguments beside settings."""

    settings: type = NoSettings
    run: Callable[[Any, argparse.Namespace], None]
    summary: str
    example: str
    arguments: tuple[tuple[str, str], ...] = ()  # flag, or name of what is given without one, and help
    repeated: tuple[str, ...] = ()  # the last of those without a flag, where it takes all words that are left
    switches: tuple[tuple[str, str], ...] = ()  # flag without value, and help
    default_recipe: str | None = None
    on_ranks: bool = False  # whether processes that torchrun starts share its work
    logs: bool = False  # its output is a log, in which progress belongs wherever it goes; else it is a result
    idle: Callable[[Any], Mapping[str, str]] = lambda settings: {}  # settings that others' tables make idle, and why


COMMANDS = {
    "train": Command(
        settings=Recipe,
        run=commands.train,
        on_ranks=True,
        logs=True,
        summary="improve a model by reinforcement learning",
        example="unmask train --recipe sudoku-mdpo --train.seed 1",
        arguments=(
            (
                "--recipe",
                "name of a shipped recipe (unmask recipes lists them), or a .toml file (default: sudoku-dispo)",
            ),
            ("--output", "directory of the run (default: runs/RECIPE-NNN or runs/METHOD-TASK-NNN)"),
            (
                "--resume",
                "directory of a run or of its checkpoint to go on from, by its recipe; --train.max-steps may be more",
            ),
        ),
        switches=(("--watch", "in a terminal, show a completion of the last step being denoised"),),
        default_recipe="sudoku-dispo",
        idle=idle_in_recipe,
    ),
    "report": Command(
        run=commands.report,
        summary="make a page of a training run, to be opened in a browser, or of several runs compared",
        example="unmask report runs/sudoku-dispo-001",
        arguments=(
            ("runs", "directories of runs: one is shown whole, several are compared"),
            ("--output", "HTML file (default: report.html in the run's directory; of several, comparison.html here)"),
        ),
        repeated=("runs",),
    ),
    "watch": Command(
        run=commands.watch,
        summary="serve the page of a run while it trains, on this machine alone",
        example="unmask watch runs/sudoku-dispo-001",
        arguments=(("run", "directory of the run"), ("--port", "port to listen at (default: a free one)")),
    ),
    "sample": Command(
        settings=SampleSettings,
        run=commands.sample,
        summary="show how a model fills one completion, step by step",
        example="unmask sample --model runs/sudoku-dispo-001/checkpoints/step_000300 --item 3",
    ),
    "evaluate": Command(
        settings=EvaluateSettings,
        run=commands.evaluate,
        summary="measure a model on held-out items, by unmasking rule and number of steps",
        example="unmask evaluate --steps 4,16 --unmasking low_confidence,rcr",
        arguments=(
            (
                "--output",
                "file for the same figures as JSON, whole after every row: the same command goes on from there",
            ),
        ),
        idle=idle_in_evaluation,
    ),
    "pretrain": Command(
        settings=PretrainRecipe,
        run=commands.pretrain,
        logs=True,
        summary="train a small base model from scratch, or fine-tune --model DIR, supervised",
        example="unmask pretrain --recipe pretrain-sudoku --output models/sudoku",
        arguments=(
            (
                "--recipe",
                "name of a shipped recipe (unmask recipes lists them), or a .toml file (default: pretrain-sudoku)",
            ),
            ("--output", "directory of the model (required for a new one)"),
            ("--resume", "directory of a training that was interrupted, or of its checkpoint, to go on from"),
        ),
        default_recipe="pretrain-sudoku",
    ),
    "convert": Command(
        run=commands.convert,
        summary="make a masked diffusion model of an autoregressive checkpoint, to be trained with pretrain",
        example="unmask convert --model models/SmolLM2-135M --output models/smollm2-diffusion",
        arguments=(
            ("--model", "directory of the checkpoint, in the layout of transformers (required)"),
            ("--output", "directory of the new model (required)"),
            ("--mask-token", "token of its tokenizer to use as mask (default: one is added)"),
        ),
    ),
    "export": Command(
        run=commands.export,
        summary="write a trained model as it is shared: weights, tokenizer, adapters, model card, citation",
        example="unmask export runs/sudoku-dispo-001 --output sudoku-solver --push ORG/sudoku-solver",
        arguments=(
            ("source", "directory of a run, which means its newest checkpoint, or of a checkpoint"),
            ("--output", "directory to write (required): a new one"),
            ("--push", "ORG/NAME on the Hub, to which it is sent then"),
        ),
    ),
    "plan": Command(
        settings=PlanSettings,
        run=commands.plan,
        summary="predict memory, forwards, FLOPs and time of a recipe on GPUs, before it is run",
        example="unmask plan gsm8k-llada8b-dispo --gpus 8x80GB --gpu h100",
        arguments=(
            ("recipe", "name of a shipped recipe (unmask recipes lists them), or a .toml file (default: sudoku-dispo)"),
        ),
        switches=(("--all-methods", "compare the costs of all methods with these settings"),),
        default_recipe="sudoku-dispo",
        idle=idle_in_recipe,
    ),
    "oracle": Command(
        settings=OracleSettings,
        run=commands.oracle,
        summary="measure every method's gradient against the exact one, on a toy that can be enumerated",
        example="unmask oracle --groups 600 --scale 2",
    ),
    "recipes": Command(
        run=commands.recipes,
        summary="list the recipes that ship, each with its first sentence",
        example="unmask recipes",
    ),
    "methods": Command(
        run=commands.methods,
        summary="list the methods and what each is made of, or tell all about one",
        example="unmask methods mdpo",
        arguments=(("name", "method to tell all about (default: a table of all methods)"),),
        switches=(("--markdown", "print Markdown: docs/methods.md is made so"),),
    ),
}
