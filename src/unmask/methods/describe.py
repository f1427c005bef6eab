"""The table of methods, read off the pieces of their terms, and the dry rollout that counts their forwards."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch

from unmask.methods.base import Method
from unmask.objective.divergences import Penalty
from unmask.objective.term import Term, record_of
from unmask.sampling.columns import steps_with_masks
from unmask.sampling.records import Record
from unmask.sampling.schedules import uniform_schedule
from unmask.types import Rollout, ScoringBatch, Snapshot
from unmask.uniforms import Uniforms

# The dry rollout whose forwards are counted, and the tokens that it is made of.
PROMPT, LENGTH, BLOCKS, STEPS, GROUP = 4, 32, 4, 16, 4
MASK, EOS, FIRST_TOKEN = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class DryShape:
    """Sizes of a dry rollout: tokens, blocks, denoising steps of them all, completions a prompt, prompts.

    offset: positions of the first block that are the prompt's, for a model that attends in blocks of its own; what they
    take is left to one block more, with the steps of a block.
    """

    prompt: int = PROMPT
    length: int = LENGTH
    blocks: int = BLOCKS
    steps: int = STEPS
    group: int = GROUP
    prompts: int = 1
    offset: int = 0


LEGEND = {
    "rows": "what is scored: the log-probs of these tokens, given this partly masked input",
    "unit": "the rows whose log-probs are combined, with one advantage",
    "score": "how the log-probs of a unit become scores (the likelihood)",
    "advantage": "how rewards become advantages",
    "surrogate": "the loss of scores and advantages, and the KL penalty",
    "forwards": f"a completion and update, at {LENGTH} tokens in {BLOCKS} blocks, {STEPS} steps, groups of {GROUP}: "
    "with gradient, and without (in a run of one update a batch of rollouts; in later updates where that differs)",
    "frozen": "what the loss reads beside the trained policy; in the first update the old policy is that one",
    "provenance": "what the file was written from: the authors' code, the paper, a port of the code, or reconstructed",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: one term of a method in words, and its forwards for a completion and update."""

    method: str
    rows: str
    unit: str
    score: str
    advantage: str
    surrogate: str
    with_gradient: float
    without_gradient: tuple[float, float]  # in a run of one update a batch of rollouts, in later updates
    frozen: str
    paper: str
    provenance: str

    @property
    def forwards(self) -> tuple[str, str]:
        """With gradient, and without: the number of later updates where it differs."""
        first, later = self.without_gradient
        return f"{self.with_gradient:g}", f"{first:g}" if first == later else f"{first:g}, later {later:g}"

    @property
    def cells(self) -> dict[str, str]:
        """The line's cells by heading."""
        with_gradient, without_gradient = self.forwards
        return {
            "method": self.method,
            "rows": self.rows,
            "unit": self.unit,
            "score": self.score,
            "advantage": self.advantage,
            "surrogate": self.surrogate,
            "forwards with gradient": with_gradient,
            "without gradient": without_gradient,
            "frozen": self.frozen,
            "paper": self.paper,
            "provenance": self.provenance,
        }


def method_rows(method: Method) -> list[Row]:
    """The table's lines for a method, one a term."""
    terms = method.terms(EOS)
    rollout = dry_rollout(record_of(terms))
    return [_row(method, term, rollout, follows=term is not terms[0]) for term in terms]


def _row(method: Method, term: Term, rollout: Rollout, *, follows: bool) -> Row:
    batch = term.scoring_batch(rollout, dry_rewards(term, rollout), Uniforms(), update=0, updates=2)
    forwards = len(batch.inputs_FL) / GROUP
    first, later = passes_without_gradient(term, batch)
    return Row(
        method=f"{method.name} + {term.masking.unit}" if follows else _name(method),
        rows=_with_details(term.masking.rows, term.masking),
        unit=term.masking.unit,
        score=words(term.likelihood),
        advantage=words(term.advantage),
        surrogate=_loss(term),
        with_gradient=forwards,
        without_gradient=(first * forwards, later * forwards),
        frozen=_frozen(term, batch),
        paper=method.paper,
        provenance=method.provenance,
    )


# ---- words ----


def words(piece: Any) -> str:
    """A piece in words, by its name and settings: `ClippedSurrogate(epsilon=0.2)` is "clipped surrogate 0.2"."""
    if not is_dataclass(piece):  # a function, or a callable of no name such as `partial`
        return str((piece if hasattr(piece, "__name__") else type(piece)).__name__).replace("_", " ")
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", type(piece).__name__)
    values = [value for _, value in _details(piece)]
    return f"{apart.lower()} {values[0]}" if len(values) == 1 and values[0] else _with_details(apart.lower(), piece)


def _with_details(name: str, piece: Any) -> str:
    details = [f"{setting} {value}".strip() for setting, value in _details(piece)]
    return f"{name} ({', '.join(details)})" if details else name


def _details(piece: Any) -> Iterator[tuple[str, str]]:
    """Names and values of its fields: of pieces the value alone, of what is switched on the name."""
    for field in fields(piece):
        name, value = field.name.replace("_", " "), vars(piece)[field.name]
        if field.metadata.get("inline"):
            yield from _details(value)
        elif callable(value):
            yield "", words(value)
        elif value is True:
            yield name, ""
        elif value is not False and field.name != "eos_id":
            yield name, f"{value:g}" if isinstance(value, int | float) else str(value)


def _name(method: Any) -> str:
    """The method's name, and that of the method that it builds on."""
    named = [field.name for field in fields(method) if "choices" in field.metadata]
    return ", ".join([method.name, *(f"{name} {vars(method)[name].name}" for name in named)])


def _loss(term: Term) -> str:
    text = words(term.surrogate)
    if term.blend is not None:
        text += f", blend {term.blend:g}"
    if term.penalty is not None:
        text += f" + {_penalty(term.penalty)}"
    return text if term.coefficient == 1 else f"{term.coefficient:g} × ({text})"


def _penalty(penalty: Penalty) -> str:
    times = ", per unit" if penalty.per_unit else ""
    return f"{penalty.coefficient:g} {words(penalty.estimate)} to {penalty.against}{times}"


def _frozen(term: Term, batch: ScoringBatch) -> str:
    old = "old log-probs" if batch.old_RL is None else "recorded old log-probs"
    needs = {old: term.reads("old"), "reference": term.reads("reference"), "old model copy": term.blend is not None}
    return ", ".join(name for name, needed in needs.items() if needed) or "none"


# ---- forwards ----


def passes_without_gradient(term: Term, batch: ScoringBatch) -> tuple[int, int]:
    """Passes over the batch without gradient: in a run of one update a batch of rollouts, and in later updates.

    That of the reference; later that of the old policy too, unless the sampler recorded its log-probs.
    """
    first = int(term.reads("reference"))
    scores_old = (term.reads("old") and batch.old_RL is None) or term.blend is not None
    return first, first + int(scores_old)


def dry_rollout(record: Record | None, shape: DryShape | None = None) -> Rollout:
    """Groups of completions as if revealed from left to right, equally many tokens a step; without a model."""
    shape = shape or DryShape()
    position_NL = torch.arange(-shape.prompt, shape.length).expand(shape.prompts * shape.group, -1)
    completion_NL = position_NL >= 0
    block_length, block_steps = shape.length // shape.blocks, shape.steps // shape.blocks
    block_NL = (position_NL + shape.offset) // block_length
    place_NL = position_NL - (block_NL * block_length - shape.offset).clamp(min=0)
    steps = shape.steps + (block_steps if shape.offset else 0)
    revealed_at_NL = torch.where(completion_NL, block_NL * block_steps + place_NL * block_steps // block_length, -1)
    rollout = Rollout.fake(
        position_NL + shape.prompt + FIRST_TOKEN,
        prompt_length=shape.prompt,
        group_size=shape.group,
        mask_id=MASK,
        block_NL=torch.where(completion_NL, block_NL, -1),
        revealed_at_NL=revealed_at_NL,
        steps=steps,
        exact=True,
    )
    if record is None:
        return rollout
    counts = uniform_schedule(block_length, block_steps)
    masked_NS = steps_with_masks(block_NL[:, shape.prompt :], steps // block_steps, counts, remasks=False)
    recorded = record.steps(Uniforms(), rollout.prompt_N, rollout.sample_N, masked_NS)
    return replace(rollout, snapshots=tuple(_snapshot(rollout, step_N, record.guesses) for step_N in recorded))


def _snapshot(rollout: Rollout, step_N: torch.Tensor, guesses: int) -> Snapshot:
    """The canvases before some steps; every guess there is the completion itself."""
    masked_NL = rollout.revealed_at_NL >= step_N[:, None]
    guesses_ZNL = rollout.tokens_NL.repeat(guesses, 1, 1)
    return Snapshot(
        step_N=step_N,
        canvas_NL=rollout.tokens_NL.masked_fill(masked_NL, MASK),
        guesses_ZNL=guesses_ZNL,
        logp_ZNL=torch.zeros(guesses_ZNL.shape),
        confidence_ZNL=masked_NL.float().expand(guesses_ZNL.shape),
    )


def dry_rewards(term: Term, rollout: Rollout) -> torch.Tensor:
    """Unequal rewards of the shape that the term's advantage reads: [P, G], or [P, G, guesses]."""
    groups = (len(rollout.tokens_NL) // rollout.group_size, rollout.group_size)
    shape = groups if term.record is None else (*groups, len(rollout.snapshots) * term.record.guesses)
    return Uniforms().key(torch.arange(torch.Size(shape).numel())).draw().float().view(shape)
