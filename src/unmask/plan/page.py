"""The page that `unmask plan` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.methods import METHODS
from unmask.plan.estimate import Plan, advice, make_plan, method_costs
from unmask.plan.gpus import GIBIBYTE
from unmask.plan.layout import Layout
from unmask.plan.shares import Shares
from unmask.plan.traffic import LATENCY
from unmask.report.progress import phase
from unmask.settings.commands import PlanSettings

if TYPE_CHECKING:
    from rich.console import Console

_METHODS_SHOWN = ("method", "forwards with\ngradient", "without", "update\nPFLOP", "rollout\nPFLOP", "step")


def print_plan(settings: PlanSettings, *, all_methods: bool) -> None:
    """Plan a recipe and print it; with `all_methods`, the costs of all methods too."""
    from unmask.report.terminal import terminal_console

    console = terminal_console(markup=False, highlight=False, emoji=False)
    with phase(f"trying {settings.model} without weights"):
        plan = make_plan(settings)
        rows = [[name, *_method_cells(plan, name)] for name in METHODS] if all_methods else []
    console.print(_heading(plan))
    _print_table(console, [["memory of one GPU", "GiB"], *_memory_rows(plan)])
    _print_table(console, [["a training step", "forwards", "PFLOP", "time"], *_cost_rows(plan)])
    if plan.transfers:
        _print_table(console, [["messages of each GPU", "number", "GB", "time"], *_message_rows(plan)])
    if all_methods:
        _print_table(console, [list(_METHODS_SHOWN), *rows])
    console.print(verdict(plan))
    if plan.work.shares.idle:
        console.print(_idle(plan.work.shares))
    console.print()
    console.print(_assumptions(plan))


def _heading(plan: Plan) -> str:
    settings, size, gpus = plan.settings, plan.size, plan.gpus
    rank = settings.train.lora_rank
    trained = f"{_count(size.trained)} in adapters of rank {rank}" if rank else "all of them"
    return (
        f"{settings.model}: {_count(size.parameters)} parameters, trained: {trained}; "
        f"{settings.method.name} on {settings.task.name}\n"
        f"{gpus.count} GPU{'s' if gpus.count > 1 else ''} of {gpus.memory // GIBIBYTE} GB, {_sharing(plan.layout)}\n"
    )


def _sharing(layout: Layout) -> str:
    if not layout.sharded:
        return "data parallel: each holds the whole model, gradients are summed"
    split = f"weights, gradients and optimizer split over {layout.shard}"
    return f"hybrid: {split}, {layout.replicas} times" if layout.replicas > 1 else f"sharded: {split}"


def _count(number: int) -> str:
    for unit, size in (("billion", 1e9), ("million", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,}"


def _memory_rows(plan: Plan) -> list[list[str]]:
    memory, train, work = plan.memory, plan.settings.train, plan.work
    batch = max(term.batch for term in work.terms)
    recomputed = ", layers recomputed" if train.gradient_checkpointing else ""
    held = {
        f"weights ({'4 bits' if train.four_bit else train.param_dtype})": memory.weights,
        "frozen reference": memory.reference,
        "old policy": memory.old,
        "optimizer moments": memory.moments,
        "gradients": memory.gradients,
        "rollout and scoring batches": memory.records + memory.batches,
        "weights gathered for rollout and answers": memory.gathered,
        "weights gathered in an update": memory.working,
        "weights of the old policy, gathered in an update": memory.blended,
    }
    moments = memory.bytes_by_moment
    update = memory.update - memory.working - (0 if memory.accumulates else memory.gradients)
    passing = {
        f"denoising, {work.at_once} samples at once": memory.rollout,
        "frozen answers": memory.answers,
        f"forward and backward, {batch} at a time{recomputed}": update,
        "optimizer step": memory.optimizer,
    }
    totals = {f"at the peak of the {name}": size for name, size in moments.items()}
    rows = held | passing | totals
    return [[name, f"{size / GIBIBYTE:.2f}"] for name, size in rows.items() if size]


def _cost_rows(plan: Plan) -> list[list[str]]:
    names = ("rollout", "update, with gradient", "update, without", "together")
    amounts = (plan.totals.forwards.rows, plan.totals.flops.rows, plan.seconds.rows)
    return [
        [name, f"{round(forwards):,}", f"{flops / 1e15:.3g}", _time(seconds)]
        for name, forwards, flops, seconds in zip(names, *amounts, strict=True)
    ]


def _message_rows(plan: Plan) -> list[list[str]]:
    network, rows = plan.gpus.network, plan.transfers
    cells = [(each.name, each.messages, each.sent, each.seconds(network)) for each in rows]
    cells.append(("together", sum(each.messages for each in rows), sum(each.sent for each in rows), plan.communication))
    return [[name, f"{messages:,}", f"{sent / 1e9:.3g}", _time(seconds)] for name, messages, sent, seconds in cells]


def _method_cells(plan: Plan, name: str) -> list[str]:
    totals, seconds = method_costs(plan, METHODS[name]())
    forwards, flops = totals.forwards, totals.flops
    petaflops = [f"{value / 1e15:.3g}" for value in (flops.trained + flops.other, flops.rollout)]
    return [f"{round(forwards.trained):,}", f"{round(forwards.other):,}", *petaflops, _time(seconds.step)]


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


def verdict(plan: Plan) -> str:
    """A sentence: whether the recipe fits, and what to change where it does not."""
    peak, room = plan.memory.peak / GIBIBYTE, plan.usable / GIBIBYTE
    if plan.fits:
        return f"It fits: {peak:.1f} GiB at the peak, {room:.1f} GiB usable on each GPU."
    lines = [f"It does NOT fit: {peak:.1f} GiB at the peak, {room:.1f} GiB usable on each GPU. Change:"]
    return "\n".join([*lines, *(f"* {line}" for line in advice(plan))])


def _idle(shares: Shares) -> str:
    groups = f"{shares.prompts} group{'s' if shares.prompts > 1 else ''}"
    idle = f"{shares.idle} {'have' if shares.idle > 1 else 'has'}"
    return f"{groups} for {shares.ranks} GPUs: {idle} nothing to train; raise rollout.prompts"


def _assumptions(plan: Plan) -> str:
    settings = plan.settings
    steps, network = settings.train.max_steps, plan.gpus.network
    sent = (
        f" Messages: at {network.link / 1e9:g} GB/s within a machine (link), {network.between / 1e9:g} to others "
        f"(network), {1e6 * LATENCY:.0f} µs each, none behind computing."
        if plan.transfers
        else ""
    )
    return (
        f"Assumed: prompts of {plan.prompt} tokens (prompt_tokens), completions that fill their "
        f"{plan.work.length - plan.prompt}, every group trained; {settings.utilisation:.0%} of "
        f"{plan.gpus.peak / 1e12:g} TFLOP/s (utilisation, gpu); {settings.headroom:.0%} of the memory stays free "
        f"(headroom). A checkpoint is written from a copy in a machine's own memory, {plan.saved / GIBIBYTE:.2f} GiB. "
        f"{steps} training steps: {_time(steps * plan.seconds.step)}, "
        f"without evaluations, rewards and messages.{sent}"
    )


def _print_table(console: Console, rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for place, heading in enumerate(rows[0]):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)
    console.print()
