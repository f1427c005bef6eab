"""A method's loss for a training loop of one's own: your model, your optimizer, your DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unmask.api.batch import Batch, BatchRewards
from unmask.api.model import Model
from unmask.denoisers.adapters import AdaptersOff, has_adapters
from unmask.errors import UserError
from unmask.methods import Method
from unmask.objective.objective import MetricSums, UpdateBatch, frozen_copy
from unmask.objective.objective import Objective as ObjectiveOfTerms
from unmask.rewards import Rewards
from unmask.rewards.functions import RewardFunction, is_cached
from unmask.sampling.records import Record


class Objective:
    """The loss of a method on a model, without an optimizer: rewards in, losses to call `.backward()` on out.

    Where the method compares with a reference policy, that is the model as it is now: a frozen copy, or with adapters
    the model without them.

        objective = unmask.Objective(methods.SPG(), model)
        batch = sampler.sample(model, prompts, num_samples=8, seed=(0, step), record=objective.record)
        rewards = objective.score(batch, my_function)
        for update in objective.prepare(batch, rewards, updates=2):
            for loss in objective.losses(update, micro_batch=16):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    """

    def __init__(self, method: Method, model: Model, *, micro_batch: int = 0) -> None:
        """`micro_batch`: forwards at a time in passes without gradient; 0: all."""
        denoiser = model.denoiser
        terms = method.terms(denoiser.eos_id)
        reference: Any = None
        if any(term.reads("reference") for term in terms):
            reference = AdaptersOff(denoiser) if has_adapters(denoiser) else frozen_copy(denoiser)
        self.method, self.model = method, model
        self._objective = ObjectiveOfTerms(
            terms=terms, denoiser=denoiser, reference=reference, micro_batch=micro_batch, world=model.world
        )
        self._sums = MetricSums()

    @property
    def record(self) -> Record | None:
        """What `Sampler.sample` must record for this method; None: nothing."""
        return self._objective.record

    def score(
        self, batch: Batch, *functions: Callable[..., Any], weights: Sequence[float] | None = None
    ) -> BatchRewards:
        """The weighted sum of reward functions, f(prompts, completions, **columns) -> list of numbers or None.

        Completions and recorded guesses are scored alike, each distinct text once. Raises UserError where a function
        gives no number for each.
        """
        chosen = list(weights) if weights is not None else [1.0] * len(functions)
        if not functions or len(chosen) != len(functions):
            raise UserError(f"{len(functions)} reward functions and {len(chosen)} weights: give one weight for each")
        named = tuple(
            RewardFunction(spec=name_of(each), name=name_of(each), call=each, weight=weight, cached=is_cached(each))
            for each, weight in zip(functions, chosen, strict=True)
        )
        rewards = Rewards(functions=named, examples=batch.examples)
        tokens_ENL = batch.tokens_ENL
        texts = [text for each in batch.texts(tokens_ENL) for text in each]
        raw = [text for each in batch.raw_texts(tokens_ENL) for text in each] if rewards.reads_raw else None
        reward_EN, _ = rewards(batch.owners * len(tokens_ENL), texts, raw)
        groups = (len(tokens_ENL), len(batch.examples.items), batch.rollout.group_size)
        reward_EPG = reward_EN.view(groups).to(self.model.device)
        guesses = reward_EPG[1:].permute(1, 2, 0) if len(tokens_ENL) > 1 else None
        return BatchRewards(completions=reward_EPG[0], guesses=guesses)

    def prepare(
        self, batch: Batch, rewards: BatchRewards | Tensor | Sequence[float], updates: int = 1
    ) -> list[list[UpdateBatch]]:
        """What each of `updates` optimizer steps trains on; masks are drawn and frozen policies asked before the first.

        `rewards`: of `score`, or a number for each completion where the method has no guesses recorded.
        Raises UserError where there are too few.
        """
        found = rewards if isinstance(rewards, BatchRewards) else self._given(batch, rewards)
        terms = self._objective.terms
        if found.guesses is None and any(term.record is not None for term in terms):
            raise UserError(
                f"method {self.method.name} reads rewards of recorded guesses: sample with record=objective.record, "
                "and give what objective.score returns"
            )
        if updates > 1 and self._objective.old is None and any(term.blend is not None for term in terms):
            self._objective = replace(self._objective, old=frozen_copy(self.model.denoiser))
        read = [found.completions if term.record is None else found.guesses for term in terms]
        return self._objective.prepare(batch.rollout, read, batch.uniforms, updates)  # type: ignore[arg-type]

    def _given(self, batch: Batch, rewards: Tensor | Sequence[float]) -> BatchRewards:
        reward = torch.as_tensor(rewards, dtype=torch.float32, device=self.model.device)
        shape = (len(batch.examples.items), batch.rollout.group_size)
        if reward.numel() != shape[0] * shape[1]:
            raise UserError(f"{reward.numel()} rewards of {shape[0] * shape[1]} completions: give one for each")
        return BatchRewards(completions=reward.view(shape))

    def losses(self, update: Sequence[UpdateBatch], micro_batch: int = 0) -> Iterator[Tensor]:
        """The losses of one update, whose sum is the method's: call `.backward()` on each before asking for the next.

        Each forward is made when its loss is asked for; `micro_batch` of them at a time, 0: all. The sum of their
        gradients does not depend on it.
        """
        self._sums = MetricSums()
        return self._objective.losses(update, micro_batch, self._sums)

    @property
    def metrics(self) -> Mapping[str, float]:
        """Means over the scores of the last update whose losses were taken: loss, clip_ratio, approx_kl, kl, ..."""
        sums = {name: value.item() for name, value in self._sums.values.items()}
        count = max(sums.pop("count", 1.0), 1.0)
        return {name: value if name == "loss" else value / count for name, value in sums.items()}


def name_of(function: Callable[..., Any]) -> str:
    """How a function is called in metrics and errors."""
    name: str = getattr(function, "__name__", type(function).__name__)
    return name
