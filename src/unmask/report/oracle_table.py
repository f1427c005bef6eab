"""The tables of `unmask oracle`: bias and noise of gradients, and what likelihood estimates estimate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unmask.oracle.bounds import Estimate, estimates
from unmask.oracle.gradients import Bias, biases, oracle_methods
from unmask.oracle.toy import LENGTH, SAMPLERS, SYMBOLS, Toy
from unmask.report.progress import advance, phase
from unmask.settings.commands import OracleSettings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_BATCHES = 12  # gradients whose spread gives the errors
_WITHOUT_ESTIMATE = ("mdpo", "lfpo", "vrpo", "dispo")  # score states, contrasts or pairs instead


def print_oracle(settings: OracleSettings) -> None:
    """Measure bias and noise of all methods on the enumerable toy, and print the tables of `unmask oracle`."""
    from unmask.report.terminal import terminal_console

    toy, methods = Toy(settings.seed, settings.scale), oracle_methods()
    console = terminal_console()
    with phase("gradients of methods under samplers", len(methods) * len(SAMPLERS), unit="gradient"):
        table = biases(
            toy,
            methods,
            tuple(SAMPLERS),
            batches=_BATCHES,
            groups=max(1, settings.groups // _BATCHES),
            group_size=settings.num_generations,
            on_done=advance,
        )
    _print_biases(console, table, settings)
    scored = {name: method for name, method in methods.items() if name.split()[0] not in _WITHOUT_ESTIMATE}
    with phase("likelihood estimates", len(scored), unit="method"):
        estimated = estimates(toy, scored, settings.masks, on_done=advance)
    _print_estimates(console, estimated, settings)


def _print_biases(console: Console, table: dict[str, dict[str, Bias]], settings: OracleSettings) -> None:
    console.print(
        f"Toy of {LENGTH} tokens over {SYMBOLS} symbols, one token a step; {settings.groups} groups of "
        f"{settings.num_generations} completions. Mean gradient of each method at now = old = reference, against the "
        "exact gradient of the expected reward under the sampler, every trajectory enumerated.\n"
        "cosine: ± standard error; norm: ratio to the exact one; noise: variance of a group's gradient times its "
        "forwards, over the squared norm of the mean.",
        highlight=False,
    )
    for sampler in SAMPLERS:
        shown = _table(f"sampler: {sampler.replace('_', ' ')}", "method", "forwards", "cosine", "norm", "noise")
        for method, by_sampler in table.items():
            bias = by_sampler[sampler]
            cosine = f"{bias.cosine:+.3f} ± {bias.cosine_error:.3f}"
            shown.add_row(method, f"{bias.forwards:.2g}", cosine, f"{bias.norm_ratio:.2f}", f"{bias.noise:.0f}")
        console.print(shown)


def _table(title: str, first: str, *others: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _print_estimates(console: Console, table: dict[str, Estimate], settings: OracleSettings) -> None:
    title = f"log-likelihood estimates of completions drawn in random order, in nats; {settings.masks} masks each"
    shown = _table(title, "estimate", "mean", "- exact ELBO", "- log p", "deviation", "above log p")
    for method, row in table.items():
        numbers = (f"{row.mean:.3f}", f"{row.to_elbo:+.3f}", f"{row.to_logp:+.3f}", f"{row.deviation:.3f}")
        shown.add_row(method, *numbers, f"{row.above:.0%}")
    console.print(shown)
