"""A denoiser small enough to enumerate: three tokens over three symbols, logits from a table, float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations, product
from math import factorial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unmask.denoisers.base import Attention, Denoiser
from unmask.denoisers.head.reducers import LogitsReducer
from unmask.sampling.unmasking import LeftToRight, LowConfidence, Observation, Random, Unmasking
from unmask.types import Prompts
from unmask.uniforms import Uniforms

SYMBOLS, LENGTH, PROMPT = 3, 3, 1
MASK = SYMBOLS
IMPOSSIBLE = -1e9  # logit of the mask token

Canvas = tuple[int, ...]
COMPLETIONS: list[Canvas] = list(product(range(SYMBOLS), repeat=LENGTH))


class Toy(Denoiser):
    """Denoiser whose logits are a table lookup on the whole completion; the prompt is ignored, the mask never drawn.

    4^3 states x 3 positions x 3 symbols: every completion, mask and trajectory can be enumerated.
    """

    mask_id, eos_id, max_length = MASK, -1, PROMPT + LENGTH

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn((MASK + 1) ** LENGTH, LENGTH, SYMBOLS, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(scale * table)

    def logits(self, canvas_FC: Tensor) -> Tensor:
        """Logits [F, C, V] of completions [F, C]."""
        index_F = (canvas_FC * (MASK + 1) ** torch.arange(LENGTH)).sum(1)
        return nn.functional.pad(self.table[index_F], (0, 1), value=IMPOSSIBLE)

    def forward(
        self,
        tokens_FL: Tensor,
        attention_FL: Attention,
        query_FA: Tensor,
        reducer: LogitsReducer,
        guidance: Any = None,
        other_model: Denoiser | None = None,
        part: Any = None,
        selected_Q: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """As Denoiser.forward, without guidance and parts; `other_model` must be a Toy."""
        place_Q = torch.arange(query_FA.numel()) if selected_Q is None else selected_Q
        logits = [self._at(tokens_FL, query_FA)[place_Q]]
        if isinstance(other_model, Toy):
            logits.append(other_model._at(tokens_FL, query_FA)[place_Q].detach())
        reduced: tuple[Tensor, ...] = reducer.from_logits(logits[0], slice(0, len(place_Q)), *logits[1:])
        shape = query_FA.shape if selected_Q is None else selected_Q.shape
        return tuple(each.view(*shape, *each.shape[1:]) for each in reduced)

    def _at(self, tokens_FL: Tensor, query_FA: Tensor) -> Tensor:
        logits_FCV = self.logits(tokens_FL[:, PROMPT:])
        column_FA1 = (query_FA - PROMPT).clamp(min=0)[..., None]
        return logits_FCV.gather(1, column_FA1.expand(-1, -1, SYMBOLS + 1)).flatten(0, 1)

    def logp(self, canvas: Canvas, position: int, token: int) -> Tensor:
        """log p(token at position | canvas)."""
        return self.logits(torch.tensor([canvas]))[0, position].log_softmax(0)[token]


def reward(completion: Canvas) -> float:
    """A fixed pseudo-random reward in [0, 1) of each completion."""
    return float(Uniforms().key("reward", *completion).draw())


class Trajectory(NamedTuple):
    """One way the sampler can write a completion, with its log-probability.

    Step by step, the canvas and the tokens proposed there (position: token); and the step that revealed each position.
    """

    canvases: tuple[Canvas, ...]
    proposals: tuple[dict[int, int], ...]
    revealed_at: Canvas
    completion: Canvas
    logp: Tensor  # of all that was drawn


def random_order_trajectories(toy: Toy) -> Iterator[Trajectory]:
    """Every order and every completion: p = 1/3! times the product of p(token | canvas before it)."""
    chance = -torch.tensor(factorial(LENGTH), dtype=torch.float64).log()
    for order in permutations(range(LENGTH)):
        for completion in COMPLETIONS:
            trajectory = ordered_trajectory(toy, order, completion)
            yield trajectory._replace(logp=trajectory.logp + chance)


def left_to_right_trajectories(toy: Toy) -> Iterator[Trajectory]:
    """Every completion in the one order."""
    for completion in COMPLETIONS:
        yield ordered_trajectory(toy, tuple(range(LENGTH)), completion)


def ordered_trajectory(toy: Toy, order: tuple[int, ...], completion: Canvas) -> Trajectory:
    """A completion written in a given order, one token a step: p = product of p(token | canvas before it)."""
    canvas: Canvas = (MASK,) * LENGTH
    canvases, proposals = [], []
    logp = torch.zeros((), dtype=torch.float64)
    for position in order:
        canvases.append(canvas)
        proposals.append({position: completion[position]})
        logp = logp + toy.logp(canvas, position, completion[position])
        canvas = (*canvas[:position], completion[position], *canvas[position + 1 :])
    revealed_at = tuple(order.index(position) for position in range(LENGTH))
    return Trajectory(tuple(canvases), tuple(proposals), revealed_at, completion, logp)


def low_confidence_trajectories(toy: Toy) -> Iterator[Trajectory]:
    """Every combination of proposals at every step; LowConfidence decides which position is committed."""
    nothing = torch.zeros((), dtype=torch.float64)
    yield from _continued(toy, Trajectory((), (), (-1,) * LENGTH, (MASK,) * LENGTH, nothing))


def _continued(toy: Toy, past: Trajectory) -> Iterator[Trajectory]:
    canvas, step = past.completion, len(past.canvases)
    masked = [position for position in range(LENGTH) if canvas[position] == MASK]
    if not masked:
        yield past
        return
    for tokens in product(range(SYMBOLS), repeat=len(masked)):
        proposal = dict(zip(masked, tokens, strict=True))
        logps = {position: toy.logp(canvas, position, token) for position, token in proposal.items()}
        position = _committed(canvas, logps)
        yield from _continued(
            toy,
            Trajectory(
                (*past.canvases, canvas),
                (*past.proposals, proposal),
                (*past.revealed_at[:position], step, *past.revealed_at[position + 1 :]),
                (*canvas[:position], proposal[position], *canvas[position + 1 :]),
                past.logp + torch.stack(list(logps.values())).sum(),
            ),
        )


def _committed(canvas: Canvas, logps: dict[int, Tensor]) -> int:
    """The position that low-confidence remasking reveals, given the log-probs of the proposals."""
    confidence = torch.zeros(1, LENGTH, dtype=torch.float64)
    for position, logp in logps.items():
        confidence[0, position] = logp.detach().exp()
    masked = torch.tensor([canvas]) == MASK
    after = LowConfidence()(
        Observation(
            masked_NC=masked,
            token_NC=torch.zeros_like(masked, dtype=torch.long),
            confidence_NC=confidence,
            running_NC=confidence,
            position_NC=torch.arange(LENGTH)[None],
            count=1,
            remaining=len(logps) - 1,
            uniforms=Uniforms(),
        )
    )
    return int((masked & ~after).long().argmax())


SAMPLERS: dict[str, tuple[Unmasking, Callable[[Toy], Iterator[Trajectory]]]] = {
    "random": (Random(), random_order_trajectories),
    "low_confidence": (LowConfidence(), low_confidence_trajectories),
    "left_to_right": (LeftToRight(), left_to_right_trajectories),
}


def prompts(count: int, group_size: int = 1) -> Prompts:
    """Prompts of `count` samples of the one prompt, in groups; every sample has its own draws."""
    sample = torch.arange(count)
    return Prompts(
        tokens_NP=torch.zeros(count, PROMPT, dtype=torch.long),
        attention_NP=torch.ones(count, PROMPT, dtype=torch.bool),
        prompt_N=sample // group_size,
        sample_N=sample % group_size,
    )


def with_prompt(rows: list[Canvas]) -> Tensor:
    """Token rows [N, 1 + L] of completions or canvases, the prompt in front."""
    return nn.functional.pad(torch.tensor(rows), (PROMPT, 0), value=0)
