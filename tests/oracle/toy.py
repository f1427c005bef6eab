"""A denoiser so small that all it can do is enumerated: three tokens over three symbols, float64."""

from itertools import permutations, product
from math import factorial
from typing import NamedTuple

import torch
from torch import nn

from unmask.denoisers.base import Denoiser
from unmask.types import Prompts, Rollout
from unmask.uniforms import Uniforms
from unmask.unmasking import LowConfidence, Seen

SYMBOLS, LENGTH, PROMPT = 3, 3, 1
MASK = SYMBOLS
STEPS = LENGTH  # one token a step
IMPOSSIBLE = -1e9


class Toy(Denoiser):
    """Logits are a table lookup on the whole completion; the mask token has no probability."""

    mask_id, eos_id, max_length = MASK, -1, PROMPT + LENGTH

    def __init__(self, seed=0):
        nn.Module.__init__(self)
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn((MASK + 1) ** LENGTH, LENGTH, SYMBOLS, generator=generator, dtype=torch.float64)
        self.table = nn.Parameter(table)

    def logits(self, canvas_FC):
        index_F = (canvas_FC * (MASK + 1) ** torch.arange(LENGTH)).sum(1)
        return nn.functional.pad(self.table[index_F], (0, 1), value=IMPOSSIBLE)

    def forward(self, tokens_FL, attention_FL, asked_FA, answer, guidance=None, beside=None):
        logits_FCV = self.logits(tokens_FL[:, PROMPT:])
        column_FA1 = (asked_FA - PROMPT).clamp(min=0)[..., None]
        asked_FAV = logits_FCV.gather(1, column_FA1.expand(-1, -1, SYMBOLS + 1))
        parts = answer(asked_FAV.flatten(0, 1), slice(0, asked_FA.numel()))
        return tuple(part.unflatten(0, asked_FA.shape) for part in parts)

    def logp(self, canvas, position, token):
        return self.logits(torch.tensor([canvas]))[0, position].log_softmax(0)[token]


COMPLETIONS = list(product(range(SYMBOLS), repeat=LENGTH))


def reward(completion) -> float:
    """Some fixed number for every completion."""
    return Uniforms().key("reward", *completion).draw().item()


class Trajectory(NamedTuple):
    """Step by step, the canvas and the tokens proposed there (position: token); what was committed when."""

    canvases: tuple
    proposals: tuple
    revealed_at: tuple
    completion: tuple
    logp: torch.Tensor  # of all that was drawn


def random_order_trajectories(toy):
    """Every order and every token: p = 1/3! times the product of p(token | canvas before it)."""
    for order in permutations(range(LENGTH)):
        for completion in COMPLETIONS:
            canvas, canvases, proposals = (MASK,) * LENGTH, [], []
            logp = -torch.tensor(factorial(LENGTH), dtype=torch.float64).log()
            for position in order:
                canvases.append(canvas)
                proposals.append({position: completion[position]})
                logp = logp + toy.logp(canvas, position, completion[position])
                canvas = (*canvas[:position], completion[position], *canvas[position + 1 :])
            revealed_at = tuple(order.index(position) for position in range(LENGTH))
            yield Trajectory(tuple(canvases), tuple(proposals), revealed_at, completion, logp)


def low_confidence_trajectories(toy):
    """Every proposal of all masked positions at every step; the rule itself says which one is committed."""
    yield from _continued(
        toy, Trajectory((), (), (-1,) * LENGTH, (MASK,) * LENGTH, torch.zeros((), dtype=torch.float64))
    )


def _continued(toy, past):
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
                past.logp + sum(logps.values()),
            ),
        )


def _committed(canvas, logps) -> int:
    confidence = torch.zeros(1, LENGTH, dtype=torch.float64)
    for position, logp in logps.items():
        confidence[0, position] = logp.detach().exp()
    masked = torch.tensor([canvas]) == MASK
    after = LowConfidence()(
        Seen(
            masked_NC=masked,
            confidence_NC=confidence,
            running_NC=confidence,
            position_C=torch.arange(LENGTH),
            count=1,
            remaining=len(logps) - 1,
            uniforms=Uniforms(),
        )
    )
    return int((masked & ~after).long().argmax())


def prompts(count) -> Prompts:
    """`count` samples of the one prompt."""
    return Prompts(
        tokens_NP=torch.zeros(count, PROMPT, dtype=torch.long),
        attention_NP=torch.ones(count, PROMPT, dtype=torch.bool),
        prompt_N=torch.zeros(count, dtype=torch.long),
        sample_N=torch.arange(count),
    )


def with_prompt(rows) -> torch.Tensor:
    """Completions or canvases behind the prompt."""
    return nn.functional.pad(torch.tensor(rows), (PROMPT, 0), value=0)


def rollout_of(completions, revealed_at, snapshots=()) -> Rollout:
    """Enumerated completions as one group."""
    tokens = with_prompt(completions)
    region = (torch.arange(PROMPT + LENGTH) >= PROMPT).expand_as(tokens)
    return Rollout(
        tokens_NL=tokens,
        attention_NL=torch.ones_like(tokens).bool(),
        completion_NL=region,
        block_NL=region.long() - 1,
        revealed_at_NL=nn.functional.pad(torch.tensor(revealed_at), (PROMPT, 0), value=-1),
        sampled_logp_NL=torch.zeros(tokens.shape),
        confidence_NL=torch.zeros(tokens.shape),
        prompt_N=torch.zeros(len(tokens), dtype=torch.long),
        sample_N=torch.arange(len(tokens)),
        prompt_length=PROMPT,
        group_size=len(tokens),
        steps=STEPS,
        temperature=1.0,
        mask_id=MASK,
        remasking=False,
        snapshots=tuple(snapshots),
    )
