"""Published checkpoint formats, one a file; `FORMATS` lists them."""

from __future__ import annotations

from unmask.denoisers.formats.base import CheckpointFormat, Published
from unmask.denoisers.formats.dream import DREAM
from unmask.denoisers.formats.llada import LLADA
from unmask.denoisers.formats.llada2 import LLADA2
from unmask.denoisers.formats.llada_moe import LLADA_MOE, LLADA_MOE_BIASED
from unmask.errors import UserError
from unmask.validation import load_named

# The first that matches is taken.
FORMATS: tuple[CheckpointFormat, ...] = (
    DREAM,
    LLADA_MOE_BIASED,
    LLADA_MOE,  # before LLaDA, whose model_type its checkpoints may name
    LLADA2,
    LLADA,
)


def format_of(published: Published, model_format: str | None = None) -> CheckpointFormat | None:
    """The format of a checkpoint with this config.json; None for transformers' own.

    `model_format`: FILE.py:NAME or MODULE:NAME of a function without arguments that returns the user's own
    `CheckpointFormat`, which is then taken whatever config.json says. Raises UserError where there is none.
    """
    if model_format is None:
        return next((known for known in FORMATS if known.matches(published)), None)
    made = load_named(model_format, "model_format")()
    if not isinstance(made, CheckpointFormat):
        raise UserError(
            f"model_format {model_format!r} returns a {type(made).__name__}: return an unmask.denoisers.formats.base."
            "CheckpointFormat"
        )
    return made
