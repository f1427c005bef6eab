"""Dream's checkpoint format (Dream-org/Dream-v0, apple/DiffuCoder): a Qwen2 that attends both ways.

It keeps the shift of the autoregressive model that it grew from (2508.15487, 2506.20639).
"""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM

from unmask.denoisers.formats.base import CheckpointFormat, Published, is_a, shared_settings


def _config(published: Published) -> Qwen2Config:
    return Qwen2Config(**shared_settings(published), intermediate_size=published["intermediate_size"])


DREAM = CheckpointFormat(
    name="Dream",
    matches=lambda published: published.get("model_type") == "Dream" or is_a(published, "DreamModel"),
    network=Qwen2ForCausalLM,
    config=_config,
    fixed={"rope_scaling": None, "use_sliding_window": False},
    shift=True,
)
