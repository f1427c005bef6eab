"""Checkpoint formats: how published checkpoints are read as transformers' own architectures, and written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)

from unmask.denoisers.proportion import check_proportion
from unmask.errors import UserError

Published = Mapping[str, Any]  # a config.json, as published


def _never(published: Published) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class CheckpointFormat:
    """How checkpoints of one kind become a `network` of transformers, such as LlamaForCausalLM.

    `matches`: whether a config.json is of this kind; by default none is, and the user names the format.
    `config`: config.json -> the network's configuration; a KeyError there is reported as a missing setting.
    `fixed`: settings that the network cannot change; a config.json that says otherwise is another architecture.
    `renaming`: published tensor name -> name in the network, as regular expressions of at most one group.
    `conversions`: tensors that are fused in one of the two, besides those that transformers knows of for `like`.
    `shift`: the output at i-1 predicts the token at i.
    `block_length`: of the blocks that a position attends to, where config.json names none.

        def my_format() -> CheckpointFormat:  # load_denoiser(directory, model_format="my_format.py:my_format")
            return CheckpointFormat(
                name="Mine", network=LlamaForCausalLM, config=lambda published: LlamaConfig(**published),
                renaming={r"^backbone\\.": "model."},
            )
    """

    name: str
    network: Any
    config: Callable[[Published], PretrainedConfig]
    matches: Callable[[Published], bool] = _never
    fixed: Mapping[str, Any] = field(default_factory=dict)
    renaming: Mapping[str, str] = field(default_factory=dict)
    conversions: tuple[Any, ...] = ()
    like: str = ""
    shift: bool = False
    block_length: int | None = None

    def network_config(self, published: Published) -> PretrainedConfig:
        """The network's configuration.

        Raises UserError where config.json lacks a key, has a value of another kind, or says other than `fixed`.
        """
        for key, value in self.fixed.items():
            found = published.get(key, value)
            if (found or None) != (value or None):  # null, false, 0 and absent say the same
                raise UserError(f"{self.name} config has {key} = {found!r}: only {value!r} is known, check config.json")
        try:
            return self.config(published)
        except KeyError as error:
            raise UserError(f"{self.name} config has no {error.args[0]}: restore the published config.json") from error
        except (TypeError, ArithmeticError, StrictDataclassError) as error:
            detail = " ".join(str(error).split())[:200]
            raise UserError(f"{self.name} config is unusable ({detail}): restore the published config.json") from error

    def load(self, directory: Any, published: Published, **options: Any) -> Any:
        """What `network.from_pretrained` returns; the network remembers how to write the published tensors back."""
        config = self.network_config(published)
        check_proportion(Path(directory), config, self.network)
        self._register_conversions(config)
        return self.network.from_pretrained(directory, config=config, key_mapping=dict(self.renaming), **options)

    def described(self, published: Published) -> Any:
        """The network without its weights, which knows by what names they are published."""
        config = self.network_config(published)
        self._register_conversions(config)
        with torch.device("meta"):
            network = self.network(config)
        network._weight_conversions = get_model_conversion_mapping(network, key_mapping=dict(self.renaming))
        return network

    def _register_conversions(self, config: PretrainedConfig) -> None:
        if self.conversions:
            conversions = [*get_checkpoint_conversion_mapping(self.like), *self.conversions]
            register_checkpoint_conversion_mapping(config.model_type, conversions, overwrite=True)


def is_a(published: Published, architecture: str) -> bool:
    """Whether config.json lists `architecture` among its `architectures`."""
    return architecture in (published.get("architectures") or ())


def shared_settings(published: Published) -> dict[str, Any]:
    """The part of a network's configuration that a config.json with transformers' names gives; attention both ways.

    Raises KeyError for a required name that is not there.
    """
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    optional = ("hidden_act", "initializer_range", "attention_dropout", "tie_word_embeddings")
    tokens = ("pad_token_id", "eos_token_id", "bos_token_id")
    settings = {key: published[key] for key in (*required, "rms_norm_eps")}
    settings |= {key: published[key] for key in (*optional, *tokens) if key in published}
    return settings | {
        "num_key_value_heads": published.get("num_key_value_heads") or published["num_attention_heads"],
        "rope_parameters": {"rope_type": "default", "rope_theta": published["rope_theta"]},
        "is_causal": False,
        "use_cache": False,
    }
