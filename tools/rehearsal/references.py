"""A task's own solutions through a chat template and back: what their reward is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmask.data.chat import PLAIN, ChatSettings
from unmask.data.examples import Examples, encode_completions
from unmask.settings.recipe import Recipe

_EXAMPLES = 8


def round_trip_rewards(task: Any, tokenizer: Any, chat: ChatSettings = PLAIN, room: int = 4096) -> list[float]:
    """Rewards of the solutions of some examples: worded for the model, encoded, decoded as training decodes."""
    items = task.examples("train", _EXAMPLES, 0)
    examples = Examples.of(items, tokenizer, tokenizer.eos_token_id, room, chat)
    rows = encode_completions(tokenizer, items, [item.solution for item in items], chat)
    filled = [[*row, tokenizer.eos_token_id] for row in rows]
    indices = list(range(len(items)))
    texts = examples.texts(tokenizer, indices, filled)
    rewards: list[float] = task.rewards([item.prompt for item in items], texts, **examples.columns(indices, 1))
    return rewards


def reference_rewards(recipe: Recipe, stand_in: Path) -> list[float]:
    """The same for a recipe on its stand-in."""
    from unmask.denoisers.loading import load_tokenizer

    return round_trip_rewards(recipe.task, load_tokenizer(str(stand_in)), recipe.chat)
