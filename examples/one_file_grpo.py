"""diffu-GRPO (d1, arXiv 2504.12216) in one file: a small masked diffusion language model learns 4x4 Sudoku.

    python examples/one_file_grpo.py --steps 20

It needs torch, transformers and a model directory, not the `unmask` library, whose sampler and update it equals given
the same draws (tests/examples/test_one_file_grpo.py). Twenty steps show the machinery, not the learning: batches of 16
puzzles are noisy, and the library's recipe of this method takes 300 of 32 to gain some six points (docs/results.md).

How it departs from GRPO for autoregressive models:

1. Sampling. The completion starts as masks and is filled in a few steps, several tokens at once, the surest first.
2. Likelihood. The probability of such a completion is a sum over all orders of filling, out of reach. In its place
   stands a one-step estimate: one forward with the whole completion masked gives log p(token | prompt) at every
   position, each without sight of the others. The ratio of PPO is a ratio of these estimates; temperature and order
   of sampling do not enter it.
3. Prompt masks. In the estimate every prompt token is hidden with probability p, drawn afresh for each update, so
   that several updates on one batch see it under several masks.
4. Old policy. Log-probs met while sampling are of partly filled canvases, hence of no use as "old" ones: those are
   estimated with the masks of each update, before the first update. The reference is scored under the same masks.
5. Advantage. Reward minus the mean of the group, not divided by the group's standard deviation.

Letters at the end of tensor names: Q puzzles, G samples each, N = Q G samples (those of one puzzle are neighbours),
P prompt positions (the same number for every puzzle, so there are no pads), C completion positions, L = P + C,
K positions kept in a step, V vocabulary.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

# ---- model: a Llama that attends both ways ----

EMBEDDED_MODEL = Path(__file__).resolve().parents[1] / "src" / "unmask" / "denoisers" / "assets" / "sudoku"


def load(directory: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model and its tokenizer, which names the mask token and the end of sequence."""
    if not (directory / "config.json").is_file():
        raise SystemExit(f"{directory} has no config.json: give --model the directory of a masked diffusion model")
    model = LlamaForCausalLM.from_pretrained(directory, use_safetensors=True)
    if getattr(model.config, "is_causal", True):
        raise SystemExit(f"{directory} attends causally: give a model with is_causal = false in its config.json")
    return model.eval(), PreTrainedTokenizerFast.from_pretrained(directory)


def token_logp(logits_NCV: Tensor, tokens_NC: Tensor) -> Tensor:
    """log softmax(logits) at the tokens: [N, C]."""
    return logits_NCV.gather(2, tokens_NC[..., None])[..., 0] - logits_NCV.logsumexp(2)


# ---- puzzle: 16 digits row by row, 0 for an empty cell; the completion is the full grid ----

CELLS = 16
ROWS = [[4 * row + column for column in range(4)] for row in range(4)]
COLUMNS = [[4 * row + column for row in range(4)] for column in range(4)]
BOXES = [[corner, corner + 1, corner + 4, corner + 5] for corner in (0, 2, 8, 10)]
UNITS = [*ROWS, *COLUMNS, *BOXES]  # each holds the digits 1 to 4


def full_grids(start: str = "") -> Iterator[str]:
    """Every valid full grid that begins with `start` (288 in all), by backtracking."""
    if len(start) == CELLS:
        yield start
        return
    seen = {start[cell] for unit in UNITS if len(start) in unit for cell in unit if cell < len(start)}
    for digit in "1234":
        if digit not in seen:
            yield from full_grids(start + digit)


def draw_puzzle(grids: list[str], fewest_empty: int = 8, most_empty: int = 12) -> str:
    """A random grid with some of its cells emptied."""
    cells = list(grids[int(torch.randint(len(grids), ()))])
    empty = int(torch.randint(fewest_empty, most_empty + 1, ()))
    for cell in torch.randperm(CELLS)[:empty].tolist():
        cells[cell] = "0"
    return "".join(cells)


def is_solved(puzzle: str, completion: str) -> bool:
    """Whether a completion is a valid full grid with the puzzle's givens; a puzzle may have several solutions."""
    if len(completion) != CELLS:
        return False
    keeps_givens = all(given in ("0", cell) for given, cell in zip(puzzle, completion, strict=True))
    return keeps_givens and all({completion[cell] for cell in unit} == set("1234") for unit in UNITS)


def rewards(puzzles: list[str], completions_NC: Tensor, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """1 for a completion (read up to its end of sequence) that solves its puzzle, else 0: [N]."""
    end = tokenizer.eos_token_id
    rows = [row[: row.index(end)] if end in row else row for row in completions_NC.tolist()]
    texts = tokenizer.batch_decode(rows)
    return torch.tensor([float(is_solved(*pair)) for pair in zip(puzzles, texts, strict=True)])


# ---- sampler: low-confidence remasking ----

# (step, samples, positions) -> a uniform in [0, 1) for each sample and completion position, [N, C] in float64
Uniforms = Callable[[int, int, int], Tensor]


def torch_uniforms(step: int, samples: int, positions: int) -> Tensor:
    """Draws of PyTorch's global generator."""
    return torch.rand(samples, positions, dtype=torch.float64)


def draw_tokens(logits_NCV: Tensor, uniform_NC: Tensor, temperature: float, mask_id: int) -> Tensor:
    """Tokens under softmax(logits / temperature) without the mask token: the first whose cumulated mass exceeds u."""
    scaled_NCV = logits_NCV / temperature
    scaled_NCV[..., mask_id] = -torch.inf
    mass_NCV = (scaled_NCV.double() - scaled_NCV.amax(2, keepdim=True)).exp().cumsum(2)
    level_NC = uniform_NC * mass_NCV[..., -1] * (1 - 1e-15)  # below the total, however it is rounded
    return (mass_NCV <= level_NC[..., None]).sum(2)


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    prompts_NP: Tensor,
    mask_id: int,
    *,
    length: int,
    steps: int,
    temperature: float,
    uniforms: Uniforms = torch_uniforms,
) -> Tensor:
    """Prompts and their completions, [N, L]: `length` masks filled in `steps` denoising steps.

    A step proposes a token for every mask and keeps the proposals that are most probable (at temperature 1); the
    others are masked again.
    """
    canvas_NL = torch.nn.functional.pad(prompts_NP, (0, length), value=mask_id)
    completion_NC = canvas_NL[:, -length:]  # a view: filling it fills the canvas
    for step in range(steps):
        logits_NCV = model(canvas_NL, logits_to_keep=length).logits
        proposal_NC = draw_tokens(logits_NCV, uniforms(step, *completion_NC.shape), temperature, mask_id)
        confidence_NC = token_logp(logits_NCV, proposal_NC).exp()
        confidence_NC[completion_NC != mask_id] = -1.0  # filled already
        count = length // steps + (step < length % steps)
        surest_NK = confidence_NC.argsort(dim=1, descending=True, stable=True)[:, :count]
        completion_NC.scatter_(1, surest_NK, proposal_NC.gather(1, surest_NK))
    return canvas_NL


# ---- estimate: log-probs of all completion tokens from one forward ----


def draw_prompt_mask(prompts_NP: Tensor, probability: float) -> Tensor:
    """Which prompt tokens to hide: [N, P] bool."""
    return torch.rand(prompts_NP.shape) < probability


def one_step_logp(model: LlamaForCausalLM, tokens_NL: Tensor, prompt_mask_NP: Tensor, mask_id: int) -> Tensor:
    """log p(completion token | prompt with hidden tokens, completion fully masked), at temperature 1: [N, C]."""
    length = tokens_NL.shape[1] - prompt_mask_NP.shape[1]
    masked_NL = torch.nn.functional.pad(prompt_mask_NP, (0, length), value=True)
    logits_NCV = model(tokens_NL.masked_fill(masked_NL, mask_id), logits_to_keep=length).logits
    return token_logp(logits_NCV, tokens_NL[:, -length:])


def counted_tokens(completions_NC: Tensor, end_id: int) -> Tensor:
    """Completion positions through the first end of sequence, the only ones in the loss: [N, C] bool."""
    ends_NC = (completions_NC == end_id).long()
    return ends_NC.cumsum(1) - ends_NC == 0


# ---- loss ----


def group_advantages(rewards_N: Tensor, group_size: int) -> Tensor:
    """A = r - mean of the samples of the same puzzle: [N]."""
    rewards_QG = rewards_N.view(-1, group_size)
    return (rewards_QG - rewards_QG.mean(1, keepdim=True)).flatten()


def diffu_grpo_loss(
    now_NC: Tensor,
    old_NC: Tensor,
    reference_NC: Tensor,
    advantage_N: Tensor,
    counted_NC: Tensor,
    *,
    epsilon: float,
    beta: float,
) -> Tensor:
    """Mean over counted tokens of -min(rho A, clip(rho, 1 ± epsilon) A) + beta k3.

    rho = exp(now - old); k3 = exp(reference - now) - (reference - now) - 1 estimates the divergence to the reference.
    """
    ratio_NC = (now_NC - old_NC).exp()
    clipped_NC = ratio_NC.clamp(1 - epsilon, 1 + epsilon)
    gain_NC = torch.minimum(ratio_NC * advantage_N[:, None], clipped_NC * advantage_N[:, None])
    k3_NC = (reference_NC - now_NC).exp() - (reference_NC - now_NC) - 1
    return ((beta * k3_NC - gain_NC) * counted_NC).sum() / counted_NC.sum()


# ---- loop ----


def learn(
    model: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    tokens_NL: Tensor,
    advantage_N: Tensor,
    prompt_masks: list[Tensor],
    *,
    mask_id: int,
    end_id: int,
    epsilon: float,
    beta: float,
    max_grad_norm: float,
) -> list[tuple[float, float]]:
    """One update for each prompt mask [N, P], all on the same samples: (loss, gradient norm) of each."""
    with torch.no_grad():
        frozen = [
            (one_step_logp(model, tokens_NL, mask_NP, mask_id), one_step_logp(reference, tokens_NL, mask_NP, mask_id))
            for mask_NP in prompt_masks
        ]
    history = []
    for mask_NP, (old_NC, reference_NC) in zip(prompt_masks, frozen, strict=True):
        now_NC = one_step_logp(model, tokens_NL, mask_NP, mask_id)
        counted_NC = counted_tokens(tokens_NL[:, mask_NP.shape[1] :], end_id)
        loss = diffu_grpo_loss(now_NC, old_NC, reference_NC, advantage_N, counted_NC, epsilon=epsilon, beta=beta)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        history.append((loss.item(), norm.item()))
    return history


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The settings; the paper's, for a model of 8B, are named where they differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", type=Path, default=EMBEDDED_MODEL, help="checkpoint directory")
    add("--steps", type=int, default=100, help="batches of samples")
    add("--prompts", type=int, default=16, help="puzzles a batch")
    add("--group-size", type=int, default=8, help="completions a puzzle (paper: 6)")
    add("--denoising-steps", type=int, default=4, help="for 16 tokens (paper: 128 for 256)")
    add("--temperature", type=float, default=1.4, help="of sampling (paper: 0.9)")
    add("--num-iterations", type=int, default=2, help="updates on each batch (paper: 8 on Sudoku)")
    add("--prompt-mask-prob", type=float, default=0.0, help="p (paper: 0.15; a hidden given makes another puzzle)")
    add("--epsilon", type=float, default=0.5, help="clip range of the ratio")
    add("--beta", type=float, default=0.04, help="coefficient of the KL penalty to the reference")
    add("--learning-rate", type=float, default=3e-5, help="AdamW's (paper: 3e-6)")
    add("--max-grad-norm", type=float, default=0.2, help="gradients are clipped to this norm")
    add("--threads", type=int, default=1, help="of the CPU; so small a model does not gain from more")
    add("--seed", type=int, default=0, help="of every draw")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Sample, score, learn; print a line a step."""
    settings = parse(arguments)
    logging.disable_progress_bar()
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model, tokenizer = load(settings.model)
    reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    mask_id, end_id = tokenizer.mask_token_id, tokenizer.eos_token_id
    grids = list(full_grids())
    for step in range(settings.steps):
        puzzles = [puzzle for _ in range(settings.prompts) for puzzle in [draw_puzzle(grids)] * settings.group_size]
        prompts_NP = torch.tensor(tokenizer(puzzles, add_special_tokens=False)["input_ids"])
        tokens_NL = sample(
            model, prompts_NP, mask_id, length=CELLS, steps=settings.denoising_steps, temperature=settings.temperature
        )
        rewards_N = rewards(puzzles, tokens_NL[:, -CELLS:], tokenizer)
        history = learn(
            model,
            reference,
            optimizer,
            tokens_NL,
            group_advantages(rewards_N, settings.group_size),
            [draw_prompt_mask(prompts_NP, settings.prompt_mask_prob) for _ in range(settings.num_iterations)],
            mask_id=mask_id,
            end_id=end_id,
            epsilon=settings.epsilon,
            beta=settings.beta,
            max_grad_norm=settings.max_grad_norm,
        )
        loss, norm = history[-1]
        line = f"step {step + 1:4d}  reward {rewards_N.mean():.3f}  loss {loss:+.4f}  gradient norm {norm:.3f}"
        print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
