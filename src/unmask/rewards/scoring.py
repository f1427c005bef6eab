"""Rewards of completions: the weighted sum of reward functions, each called once for each distinct text."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import torch
from jaxtyping import Float
from torch import Tensor

from unmask.data.examples import Examples
from unmask.distributed import World
from unmask.errors import UserError
from unmask.rewards.faults import Score
from unmask.rewards.functions import RAW, Arguments, RewardFunction, call_all
from unmask.rewards.load import TASK

# What a score belongs to: index of the example, text of the completion, and its raw text ("" where it is not read).
TextKey = tuple[int, str, str]


class ScoreCache:
    """Least-recently-used cache of `size` scores by example and text, of which it keeps a digest of 16 bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._scores: OrderedDict[bytes, Score] = OrderedDict()

    def known(self, keys: Iterable[TextKey]) -> dict[TextKey, Score]:
        """Scores of those of the keys that are in the cache."""
        if not self._scores:
            return {}
        digests = {key: _digest(key) for key in keys}
        scores = {key: self._scores[digest] for key, digest in digests.items() if digest in self._scores}
        for key in scores:
            self._scores.move_to_end(digests[key])
        return scores

    def add(self, scores: dict[TextKey, Score]) -> None:
        """Put in scores of keys that were not known, and forget the least recently used beyond `size`."""
        if not self._size:
            return
        self._scores |= {_digest(key): score for key, score in scores.items()}
        while len(self._scores) > self._size:
            self._scores.popitem(last=False)


def _digest(key: TextKey) -> bytes:
    """16 bytes for a key, however long its texts are: equal for equal keys alone, as far as anybody will see."""
    index, *texts = key
    digest = blake2b(str(index).encode(), digest_size=16)
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(encoded) + encoded)
    return digest.digest()


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Scores completions of `examples` by K reward functions. Raises UserError where one cannot take their columns.

    Only scores of functions marked as cached are kept from call to call, so that a resumed run, whose cache is empty,
    goes on as if it were not.

        rewards_N, scores_NK = rewards([0, 0, 1], ["a", "b", "c"])   # two completions of example 0, one of example 1
    """

    functions: tuple[RewardFunction, ...]
    examples: Examples
    cache_size: int = 65_536  # texts remembered for each function
    _caches: tuple[ScoreCache, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        caches = (ScoreCache(self.cache_size if function.cached else 0) for function in self.functions)
        object.__setattr__(self, "_caches", tuple(caches))
        for function in self.functions:
            function.check_signature(self.examples.columns([0], 1))

    @property
    def reads_raw(self) -> bool:
        """Whether any function reads raw texts."""
        return any(function.reads_raw for function in self.functions)

    def __call__(
        self, indices: Sequence[int], texts: Sequence[str], raw_texts: Sequence[str] | None = None
    ) -> tuple[Float[Tensor, "N"], Float[Tensor, "N K"]]:
        """(rewards [N], scores [N, K]) of completions, one text for each index of an example; NaN for a score of None.

        raw_texts: with end marks and what follows them, for functions that name `completions_raw`; None: the texts.
        The reward is the weighted sum of the functions that apply. Raises UserError where none does.
        """
        keys = list(zip(indices, texts, raw_texts or texts, strict=True))
        distinct = list(dict.fromkeys(keys))
        tables = self._scores(distinct)
        rows = {key: [table[key] for table in tables] for key in distinct}
        rewards = {key: self._weighted(key[0], row) for key, row in rows.items()}
        rewards_N = torch.tensor([rewards[key] for key in keys])
        return rewards_N, torch.tensor([[math.nan if score is None else score for score in rows[key]] for key in keys])

    def ask_once(self) -> None:
        """Ask each function for the first example's solution: what cannot answer shows now, whatever `faults` says.

        Nothing is remembered. Raises UserError, and what a function raises.
        """
        prefill = self.examples.prefills[0]
        key = (0, prefill + self.examples.items[0].solution.removeprefix(prefill), "")
        functions = [replace(each, faults=replace(each.faults, gives_none=False)) for each in self.functions]
        call_all(functions, [_arguments(self.examples, each, [key]) for each in functions])

    def score_ahead(self, indices: Sequence[int], texts: Sequence[str]) -> None:
        """Score these texts by the functions that may be called ahead of time, in any thread, into their caches."""
        keys = [(index, text, "") for index, text in dict.fromkeys(zip(indices, texts, strict=True))]
        for function, cache in zip(self.functions, self._caches, strict=True):
            known = cache.known(keys)
            missing = [key for key in keys if key not in known]
            if function.ahead and missing:
                cache.add(
                    dict(zip(missing, function.scores(_arguments(self.examples, function, missing)), strict=True))
                )

    def _scores(self, keys: list[TextKey]) -> list[dict[TextKey, Score]]:
        """Each function's scores of all keys: from its cache, else by calling it, once for what it can tell apart."""
        own = [[_own_key(function, key) for key in keys] for function in self.functions]
        tables = [cache.known(dict.fromkeys(read)) for cache, read in zip(self._caches, own, strict=True)]
        missing = [
            [key for key in dict.fromkeys(read) if key not in table] for read, table in zip(own, tables, strict=True)
        ]
        called = [place for place, unknown in enumerate(missing) if unknown]
        functions = [self.functions[place] for place in called]
        arguments = [_arguments(self.examples, self.functions[place], missing[place]) for place in called]
        for place, scores in zip(called, call_all(functions, arguments), strict=True):
            added = dict(zip(missing[place], scores, strict=True))
            tables[place] |= added
            self._caches[place].add(added)
        return [
            {key: table[name] for key, name in zip(keys, read, strict=True)}
            for read, table in zip(own, tables, strict=True)
        ]

    def _weighted(self, index: int, scores: list[Score]) -> float:
        parts = [f.weight * score for f, score in zip(self.functions, scores, strict=True) if score is not None]
        if not parts:
            raise UserError(
                f"no reward function applies to a completion of the prompt {self.examples.items[index].prompt[:60]!r}: "
                "add one that gives every completion a number"
            )
        return math.fsum(parts)

    def metrics(self, scores_NK: Float[Tensor, "N K"], world: World) -> dict[str, float]:
        """rewards/NAME/mean, /std (unbiased) and /none_fraction of each function over all ranks; {} for a task alone.

        A function that applies to no completion has only its share of None, 1.
        """
        if [function.spec for function in self.functions] == [TASK]:
            return {}
        applies_NK = ~scores_NK.isnan()
        sums_2K = torch.stack([applies_NK.sum(0), scores_NK.nansum(0)])
        count_K, sum_K = world.sum(sums_2K)
        samples = world.sum(scores_NK.new_tensor(float(len(scores_NK))))
        mean_K = sum_K / count_K.clamp(min=1)
        squares_K = world.sum((scores_NK - mean_K).square().nansum(0))
        std_K = (squares_K / (count_K - 1).clamp(min=1)).sqrt()
        none_K = 1 - count_K / samples
        metrics: dict[str, float] = {}
        columns = zip(self.functions, mean_K.tolist(), std_K.tolist(), none_K.tolist(), strict=True)
        for function, mean, std, none_fraction in columns:
            if none_fraction < 1:
                metrics |= {f"rewards/{function.name}/mean": mean, f"rewards/{function.name}/std": std}
            metrics[f"rewards/{function.name}/none_fraction"] = none_fraction
        return metrics


def _own_key(function: RewardFunction, key: TextKey) -> TextKey:
    return key if function.reads_raw else (*key[:2], "")


def _arguments(examples: Examples, function: RewardFunction, keys: list[TextKey]) -> Arguments:
    """A function's arguments, in lists of its own, which it may change."""
    indices = [index for index, _, _ in keys]
    arguments: Arguments = {
        "prompts": [examples.items[index].prompt for index in indices],
        "completions": [text for _, text, _ in keys],
    }
    if function.reads_raw:
        arguments[RAW] = [raw for _, _, raw in keys]
    return arguments | examples.columns(indices, 1)
