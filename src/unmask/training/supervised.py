"""Masked-diffusion supervised training: of the embedded base models, and of a user's checkpoint on their data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from unmask.data.example import Example, answered, prompt_key
from unmask.data.examples import Examples, completed, encode_completions
from unmask.denoisers.adapters import add_adapters, load_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.head.reducers import TargetLogProb
from unmask.denoisers.loading import load_denoiser
from unmask.denoisers.tiny import tiny_denoiser
from unmask.distributed import best_device
from unmask.errors import UserError
from unmask.report.progress import advance, message, phase, telling
from unmask.settings.commands import PretrainRecipe
from unmask.uniforms import Uniforms


@dataclass(frozen=True, kw_only=True)
class SupervisedBatch:
    """Prompts with their solutions as completions, padded with end-of-sequence tokens, which are trained on too."""

    tokens_NL: Tensor
    attention_NL: Tensor
    example_N: Tensor  # index of the example, which keys its masks
    prompt_length: int  # columns before the completion


def supervised_batch(
    examples: Examples,
    solution_ids: list[list[int]],
    indices: Sequence[int],
    length: int,
    device: torch.device | str = "cpu",
) -> SupervisedBatch:
    """The batch of the examples at `indices`, completions of `length` tokens."""
    prompts = examples.prompts(indices, 1, device)
    tokens_NL, attention_NL = completed(prompts, [solution_ids[index] for index in indices], length, examples.eos_id)
    return SupervisedBatch(
        tokens_NL=tokens_NL,
        attention_NL=attention_NL,
        example_N=prompts.prompt_N,
        prompt_length=prompts.tokens_NP.shape[1],
    )


def elbo_loss(denoiser: Denoiser, batch: SupervisedBatch, uniforms: Uniforms, part: slice = slice(None)) -> Tensor:
    """Masked-diffusion loss, nats a token: -E_t [ (1/t) sum over masked i of log p(o_i | q, x_t) ] / L.

    Completion tokens are masked with probability t ~ U(0, 1], stratified over the batch: t = (s + u) / N, one u a batch
    and for each row a stratum s of its own, drawn anew in every batch (LLaDA 2502.09992).
    `part`: what these rows of the batch add to it, so that micro-batches sum to the whole.
    """
    rows, start, device = len(batch.tokens_NL), batch.prompt_length, batch.tokens_NL.device
    completion = torch.arange(start, batch.tokens_NL.shape[1], device=device)
    stratum_N = torch.tensor(uniforms.key("stratum").permutation(rows), device=device)
    time_N1 = ((stratum_N + 1 - uniforms.key("time").draw()) / rows)[:, None].float()
    draw_NC = uniforms.key("mask", batch.example_N[:, None]).key(completion - start).draw()
    masked_NC = draw_NC < time_N1
    inputs_NL = batch.tokens_NL.clone()
    inputs_NL[:, start:] = inputs_NL[:, start:].masked_fill(masked_NC, denoiser.mask_id)
    reducer = TargetLogProb(batch.tokens_NL[part, start:].flatten()[:, None])
    query_NC = completion.expand(rows, -1)[part]
    logp_NC1: Tensor
    (logp_NC1,) = denoiser(inputs_NL[part], batch.attention_NL[part], query_NC, reducer)
    return -(logp_NC1[..., 0] * masked_NC[part] / time_N1[part]).sum() / masked_NC.numel()


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Examples with their solutions as tokens; the first `trained` of them are trained on, the others validate."""

    examples: Examples
    solution_ids: list[list[int]]
    trained: int
    length: int | None  # of every completion; None: of the longest in its batch, with an end token

    def batch(self, indices: Sequence[int], device: torch.device) -> SupervisedBatch:
        longest = max(len(self.solution_ids[index]) for index in indices)
        return supervised_batch(self.examples, self.solution_ids, indices, self.length or longest + 1, device)


def _data(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, denoiser: Denoiser) -> _Data:
    """Raises UserError where solutions are too long, or too few examples are there."""
    items = supervised_examples(recipe)
    room, length = denoiser.max_length - recipe.task.max_new_tokens, recipe.task.max_new_tokens
    solutions = encode_completions(tokenizer, items, [item.solution for item in items], recipe.chat)
    for item, ids in zip(items, solutions, strict=True):
        if len(ids) > length:
            raise UserError(
                f"{item.named}: completion {item.solution[:40]!r} has {len(ids)} tokens, "
                f"task.max_new_tokens is {length}"
            )
    trained = len(items) - recipe.validation_examples
    if trained < 1:
        raise UserError(
            f"task {recipe.task.name} leaves no training examples: validation_examples takes "
            f"{recipe.validation_examples}, and no prompt is in both: give fewer, or other data"
        )
    return _Data(
        examples=Examples.of(items, tokenizer, denoiser.eos_id, room, recipe.chat, denoiser.other_end_ids),
        solution_ids=solutions,
        trained=trained,
        length=length if recipe.model is None else None,
    )


def supervised_examples(recipe: PretrainRecipe) -> list[Example]:
    """The recipe's examples, with completions; those to validate are the last. Raises UserError where one has none.

    Of the examples to train on, those whose prompt is among the ones to validate are left out.
    """
    items = recipe.task.examples("train", recipe.examples + recipe.validation_examples, recipe.seed)
    split = max(0, len(items) - recipe.validation_examples)
    validated = set(map(prompt_key, items[split:]))
    return [
        _with_solution(item) for place, item in enumerate(items) if place >= split or prompt_key(item) not in validated
    ]


def _with_solution(item: Example) -> Example:
    """The example with the completion to learn from. Raises UserError where none is known."""
    found = answered(item)
    if not found.solution.strip():
        others = ", ".join(found.columns) or "nothing"
        raise UserError(
            f"{found.named}: there is no completion to learn from; beside the prompt the row has {others}: "
            "name the column of the completions by task.completion_column, or end messages with the assistant's"
        )
    return found


def _start(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, checkpoint: Path | None) -> Denoiser:
    """What the recipe starts from, or the weights at a checkpoint of it."""
    if checkpoint is not None and not recipe.lora_rank:
        return load_denoiser(str(checkpoint), model_format=recipe.model_format)
    if recipe.model is not None:
        denoiser = load_denoiser(recipe.model, four_bit=recipe.four_bit, model_format=recipe.model_format)
        if recipe.lora_rank:
            torch.manual_seed(recipe.seed)
            add_adapters(denoiser, recipe.lora_rank, recipe.lora_alpha)
        if checkpoint is not None:
            load_adapters(denoiser, checkpoint)
        return denoiser
    return tiny_denoiser(
        vocabulary=len(tokenizer),
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        hidden=recipe.hidden,
        layers=recipe.layers,
        heads=recipe.heads,
        max_length=recipe.max_length,
        seed=recipe.seed,
    )


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """The training of a recipe's denoiser, update by update."""

    recipe: PretrainRecipe
    tokenizer: PreTrainedTokenizerFast
    denoiser: Denoiser
    data: _Data
    optimizer: torch.optim.Optimizer
    best: BestWeights
    uniforms: Uniforms

    @classmethod
    def of(cls, recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast, checkpoint: Path | None = None) -> Self:
        """What there is before the first update, or at a checkpoint. Raises UserError for data that do not fit."""
        with phase(f"loading {checkpoint or recipe.model or 'a new model'}"):
            denoiser = _start(recipe, tokenizer, checkpoint).to(best_device())
        with phase("preparing the examples"):
            data = _data(recipe, tokenizer, denoiser)
        trained = [weight for weight in denoiser.parameters() if weight.requires_grad]
        decay = recipe.weight_decay
        return cls(
            recipe=recipe,
            tokenizer=tokenizer,
            denoiser=denoiser,
            data=data,
            optimizer=torch.optim.AdamW(trained, lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=decay),
            best=BestWeights(trained),
            uniforms=Uniforms().key("pretrain", recipe.seed),
        )

    def run(self, after: Callable[[int, dict[str, float]], object], first: int = 0) -> Denoiser:
        """Make the updates from number `first` on; `after` is told how many are done, and figures of the last.

        loss, grad_norm (before clipping), skipped (1: loss or gradient was not finite, and no update was made) and,
        where it was measured, validation_loss. With validation examples the weights become those of its lowest.
        """
        recipe, order = self.recipe, shuffled(self.data.trained, self.uniforms)
        order = islice(order, first * recipe.batch, None)
        with phase("step", recipe.max_steps, done=first):
            for step in range(first, recipe.max_steps):
                figures = self._update(step, list(islice(order, recipe.batch)))
                advance(figures=f"loss {figures['loss']:.3f}")
                if recipe.validation_examples and ((step + 1) % recipe.eval_steps == 0 or step + 1 == recipe.max_steps):
                    figures["validation_loss"] = self._validate(step + 1)
                after(step + 1, figures)
        self.best.restore()
        return self.denoiser

    def _update(self, step: int, indices: list[int]) -> dict[str, float]:
        recipe, optimizer = self.recipe, self.optimizer
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * min(1.0, (step + 1) / max(1, recipe.warmup_steps))
        optimizer.zero_grad()
        device = next(self.denoiser.parameters()).device
        loss = _backward(self.denoiser, self.data.batch(indices, device), self.uniforms.key(step), recipe)
        trained = optimizer.param_groups[0]["params"]
        norm = torch.nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm).item()
        skipped = not (math.isfinite(loss) and math.isfinite(norm))
        if not skipped:
            optimizer.step()
        return {"loss": loss, "grad_norm": norm, "skipped": float(skipped)}

    def _validate(self, step: int) -> float:
        held_out = len(self.data.solution_ids) - self.data.trained
        with phase(f"validation after step {step}:", held_out, unit="example"):
            value = _validation_loss(self.denoiser, self.data, self.uniforms.key("validation"), self.recipe)
        message(f"step {step}: validation loss {value:.4f} nats a token")
        self.best.see(value)
        return value


def pretrain(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerFast) -> Denoiser:
    """Train and return the denoiser of a recipe: the same weights for the same recipe, machine and number of threads.

    With validation examples they are those of the lowest validation loss. Raises UserError for data that do not fit.
    """
    with telling():
        return Pretraining.of(recipe, tokenizer).run(lambda step, figures: None)


def shuffled(count: int, uniforms: Uniforms) -> Iterator[int]:
    """Indices of examples without end: all of them in every epoch, in an order of its own."""
    for epoch in itertools.count():
        yield from uniforms.key("epoch", epoch).permutation(count)


def _backward(denoiser: Denoiser, batch: SupervisedBatch, uniforms: Uniforms, recipe: PretrainRecipe) -> float:
    """Accumulate the gradients of the loss, a micro-batch at a time; the loss."""
    rows, size, total = len(batch.tokens_NL), recipe.micro_batch or recipe.batch, 0.0
    for start in range(0, rows, size):
        with torch.autocast(batch.tokens_NL.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = elbo_loss(denoiser, batch, uniforms, slice(start, min(start + size, rows)))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    return total


@torch.no_grad()
def _validation_loss(denoiser: Denoiser, data: _Data, uniforms: Uniforms, recipe: PretrainRecipe) -> float:
    """The loss of the examples held out, with the same masks every time."""
    count, size, total = len(data.solution_ids), recipe.micro_batch or recipe.batch, 0.0
    for start in range(data.trained, count, size):
        indices = range(start, min(start + size, count))
        batch = data.batch(indices, next(denoiser.parameters()).device)
        total += float(elbo_loss(denoiser, batch, uniforms.key(start))) * len(indices)
        advance(len(indices))
    return total / (count - data.trained)


class BestWeights:
    """The trained weights with the lowest validation loss so far."""

    def __init__(self, weights: list[torch.nn.Parameter]) -> None:
        self._weights, self.value = weights, math.inf
        self._copy: list[Tensor] = []

    def see(self, value: float) -> None:
        """Keep the weights as they are now where `value` is the lowest."""
        if value < self.value:
            self.value = value
            self._copy = [weight.detach().cpu().clone() for weight in self._weights]

    def tensors(self) -> dict[str, Tensor]:
        """The weights that are kept, by their numbers, for a checkpoint; none before the first validation."""
        return {str(number): weight for number, weight in enumerate(self._copy)}

    def load(self, value: float, tensors: dict[str, Tensor]) -> None:
        """Restore what `value` and `tensors` gave."""
        self.value, self._copy = value, [tensors[str(number)] for number in range(len(tensors))]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best back; without validation the last stay."""
        for weight, best in zip(self._weights, self._copy, strict=bool(self._copy)):
            weight.copy_(best)
