"""What a run records for its page: read off the tensors of a step that is done, copied to the host at one point."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unmask.data.examples import Examples
from unmask.data.tokenization import token_texts
from unmask.distributed import World
from unmask.objective.objective import UpdateBatch
from unmask.objective.term import Term
from unmask.report.record import Arrays, Group, from_bytes, record_path, to_bytes, write_groups
from unmask.sampling.sampler import Sampler
from unmask.settings.recipe import Recipe
from unmask.training.sources import Experience
from unmask.types import Rollout, ScoringBatch

_HELD_OUT = 0  # the example of the test split that every evaluation records


@dataclass(kw_only=True)
class Recorder:
    """Writes recorded groups of training steps, and one held-out prompt of each evaluation, to RUN/record/.

    It only reads: a run without it samples and trains the same. The first rank writes for all.
    """

    run: Path
    recipe: Recipe
    tokenizer: Any
    terms: tuple[Term, ...]
    examples: Examples
    world: World
    _texts: dict[int, str] = field(default_factory=dict)  # of tokens met so far
    _held_out: list[Group] = field(default_factory=list)

    def is_due(self, done: int) -> bool:
        """Whether the training step after which `done` are done is recorded: the first, and every so many."""
        return done == 1 or done % self.recipe.report.every == 0

    def write_step(
        self, done: int, numbers: Sequence[int], experience: Experience, batches: Sequence[UpdateBatch]
    ) -> None:
        """Record the step's first groups. `numbers`: of all its examples; `batches`: what its first update trained on.

        All ranks call it alike, each with its own groups.
        """
        rollout = experience.rollout
        wanted = list(numbers[: self.recipe.report.prompts])
        first_of = dict(
            zip(rollout.prompt_N[:: rollout.group_size].tolist(), range(len(rollout.tokens_NL)), strict=False)
        )
        own = [(place, first_of[number]) for place, number in enumerate(wanted) if number in first_of]
        groups = [self._group(experience, group, batches) for _, group in own]
        packed = [
            [place, base64.b64encode(to_bytes([each])).decode()] for (place, _), each in zip(own, groups, strict=True)
        ]
        if self.world.size > 1:
            every = sorted(pair for rank in self.world.everyone(packed) for pair in rank)
            groups = [from_bytes(base64.b64decode(text))[0] for _, text in every]
        if self.world.is_main:
            write_groups(record_path(self.run, "step", done), groups)

    def see(
        self,
        sampler: Sampler,
        indices: Sequence[int],
        rollout: Rollout,
        texts: Sequence[str],
        solved: Sequence[float],
    ) -> None:
        """Take held-out completions of a sampler, by the example of each, as an evaluation scores them."""
        if _HELD_OUT not in indices or not self.world.is_main:
            return
        place = indices.index(_HELD_OUT)
        host = to_host(_rollout_tensors(rollout, slice(place, place + 1)))
        temperature = "greedy" if rollout.temperature == 0 else f"temperature {rollout.temperature:g}"
        about = {"label": f"{temperature}, {sampler.steps_taken} steps", "texts": [texts[place]]}
        arrays = host | {"reward_N": np.array([solved[place]], dtype=np.float32)}
        self._held_out.append(self._named(rollout, about, arrays))

    def write_evaluation(self, done: int, prompt: str) -> None:
        """Record what was seen of the evaluation that is over, if anything; `prompt`: of the held-out example."""
        groups = [Group(about=group.about | {"prompt": prompt}, arrays=group.arrays) for group in self._held_out]
        self._held_out.clear()
        if groups:
            write_groups(record_path(self.run, "evaluation", done), groups)

    def _group(self, experience: Experience, group: int, batches: Sequence[UpdateBatch]) -> Group:
        rollout = experience.rollout
        rows = slice(group * rollout.group_size, (group + 1) * rollout.group_size)
        tensors = _rollout_tensors(rollout, rows) | {"reward_N": experience.reward_N[rows].float()}
        tensors |= _guess_tensors(rollout, rows)
        for term, rewards in zip(self.terms, experience.term_rewards, strict=True):
            if term.record is not None:
                tensors["guess_reward_NE"] = rewards[group].float()
        host = to_host(tensors | _row_tensors(self.terms, batches, rollout, rows))
        (index,) = self.examples.indices(rollout.prompt_N[rows.start : rows.start + 1].tolist())
        texts = experience.texts[rows]
        about: dict[str, Any] = {
            "prompt": self.examples.items[index].prompt,
            "texts": texts,
            "terms": [
                {"rows": term.masking.rows, "unit": term.masking.unit, "coefficient": term.coefficient}
                for term in self.terms
            ],
        }
        if "guess_reward_NE" in host:
            about["over_denoised"] = self._over_denoised(index, host, texts)
        return self._named(rollout, about, host)

    def _over_denoised(self, index: int, host: Arrays, texts: list[str]) -> list[bool]:
        """For each completion, whether a guess on its way was right and its end is wrong.

        Only where a guess earned more than the end is the task asked.
        """
        reward_NE, end_N = host["guess_reward_NE"], host["reward_N"]
        marked = [False] * len(texts)
        if not self.recipe.task.verifies or self.recipe.train.shuffle_rewards:
            return marked
        guess_ENC = host["guess_SZNC"].reshape(-1, *host["guess_SZNC"].shape[2:])
        item = self.examples.items[index]
        for sample in np.flatnonzero(reward_NE.max(1) > end_N).tolist():
            row = guess_ENC[int(reward_NE[sample].argmax()), sample].tolist()
            both = [*self.examples.texts(self.tokenizer, [index], [row]), texts[sample]]
            solved = self.recipe.task.metrics([item.prompt] * 2, both, **self.examples.columns([index], 2))["solved"]
            marked[sample] = solved[0] == 1.0 and solved[1] < 1.0
        return marked

    def _named(self, rollout: Rollout, about: dict[str, Any], host: Arrays) -> Group:
        """The group with tokens numbered by a vocabulary of its own, whose texts are kept once."""
        places = [name for name in ("token_NC", "canvas_SNC", "guess_SZNC", "row_target_W") if name in host]
        id_V = np.unique(np.concatenate([np.array([rollout.mask_id]), *(host[name].ravel() for name in places)]))
        new = [token for token in id_V.tolist() if token not in self._texts]
        self._texts |= dict(zip(new, token_texts(self.tokenizer, new), strict=True))
        number = np.uint16 if len(id_V) <= 2**16 else np.uint32
        arrays = {name: np.searchsorted(id_V, array).astype(number) for name, array in host.items() if name in places}
        size = getattr(self.recipe.task, "size", 0)
        facts = {
            "columns": size if size**2 == arrays["token_NC"].shape[1] else 0,  # of a grid, 0 for running text
            "vocabulary": [self._texts[token] for token in id_V.tolist()],
            "mask": int(np.searchsorted(id_V, rollout.mask_id)),
            "steps": rollout.steps,
            "temperature": rollout.temperature,
            "remasking": rollout.remasking,
        }
        return Group(about=facts | about, arrays=host | arrays | {"token_id_V": id_V.astype(np.int32)})


def _rollout_tensors(rollout: Rollout, rows: slice) -> dict[str, Tensor]:
    at = (rows, slice(rollout.prompt_length, None))
    return {
        "token_NC": rollout.tokens_NL[at],
        "revealed_at_NC": rollout.revealed_at_NL[at].to(torch.int16),
        "logp_NC": rollout.sampled_logp_NL[at].half(),
        "confidence_NC": rollout.confidence_NL[at].half(),
        "length_N": rollout.completion_NL[rows].sum(1).int(),
    }


def _guess_tensors(rollout: Rollout, rows: slice) -> dict[str, Tensor]:
    if not rollout.snapshots:
        return {}
    start, states = rollout.prompt_length, rollout.snapshots
    confidence = torch.stack([state.confidence_ZNL[:, rows, start:] for state in states])
    return {
        "step_SN": torch.stack([state.step_N[rows] for state in states]).to(torch.int16),
        "canvas_SNC": torch.stack([state.canvas_NL[rows, start:] for state in states]),
        "guess_SZNC": torch.stack([state.guesses_ZNL[:, rows, start:] for state in states]),
        "guess_confidence_SZNC": (confidence * 255).round().clamp(0, 255).to(torch.uint8),
    }


def _row_tensors(
    terms: tuple[Term, ...], batches: Sequence[UpdateBatch], rollout: Rollout, rows: slice
) -> dict[str, Tensor]:
    """What is trained of some samples: rows of all terms, one after another; nothing where no batch has any."""
    found = [
        _rows_of(update.batch, terms.index(update.term), rollout, rows)
        for update in batches
        if update.batch.sample_R is not None
    ]
    return {name: torch.cat([each[name] for each in found]) for name in (found[0] if found else ())}


def _rows_of(batch: ScoringBatch, term: int, rollout: Rollout, rows: slice) -> dict[str, Tensor]:
    assert batch.sample_R is not None  # noqa: S101
    chosen_R = ((batch.sample_R >= rows.start) & (batch.sample_R < rows.stop)).nonzero()[:, 0]
    masked_RL = batch.inputs_FL[batch.forward_R[chosen_R]] == rollout.mask_id
    scored_RL = batch.scored_RL[chosen_R]
    start = rollout.prompt_length
    scored_RC = scored_RL[:, start:]
    return {
        "row_sample_R": (batch.sample_R[chosen_R] - rows.start).int(),
        "row_term_R": torch.full_like(chosen_R, term, dtype=torch.uint8),
        "row_advantage_R": batch.advantage_U[batch.unit_R[chosen_R]].float(),
        "row_prompt_masks_R": masked_RL[:, :start].sum(1).int(),
        "row_masked_RC": masked_RL[:, start:],
        "row_scored_RC": scored_RC,
        "row_weight_W": batch.token_weight_RL[chosen_R][:, start:][scored_RC].float(),
        "row_target_W": batch.targets_RL[chosen_R][:, start:][scored_RC],
    }


def to_host(tensors: dict[str, Tensor]) -> Arrays:
    """Tensors as NumPy arrays, by one copy of all their bytes; flags are packed to bits, 8 columns a byte."""
    flat = {name: tensor.contiguous().view(-1).view(torch.uint8) for name, tensor in tensors.items() if tensor.numel()}
    content = torch.cat(list(flat.values())).cpu().numpy().tobytes() if flat else b""
    arrays: Arrays = {}
    begin = 0
    for name, tensor in tensors.items():
        kind = np.dtype(str(tensor.dtype).removeprefix("torch."))
        end = begin + tensor.numel() * kind.itemsize
        array = np.frombuffer(content[begin:end], dtype=kind).reshape(tuple(tensor.shape))
        is_bits = kind == np.bool_
        arrays[f"{name.removesuffix('C')}B" if is_bits else name] = (
            np.packbits(array, axis=-1, bitorder="little") if is_bits else array
        )
        begin = end
    return arrays
