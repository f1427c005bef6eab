"""A reward model: a sequence classifier with one output, read from a checkpoint directory. Nothing is unpickled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from unmask.data.turns import templated
from unmask.denoisers.loading import load_tokenizer, refuse_misfits, resolve
from unmask.denoisers.plain import read_config
from unmask.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """Reward function: a classifier's output for prompt and completion, in the tokenizer's chat template if it has one.

    Not remembered over steps: the last bits of a score depend on the texts that share its batch.
    """

    path: str
    network: Any
    tokenizer: PreTrainedTokenizerFast
    batch: int  # texts at a time
    max_length: int  # tokens

    @torch.no_grad()
    def __call__(self, prompts: list[str], completions: list[str], **columns: list[Any]) -> list[float]:
        """Scores of the completions. Raises UserError where a text is longer than the model takes."""
        texts = [self._text(*pair) for pair in zip(prompts, completions, strict=True)]
        parts = [texts[start : start + self.batch] for start in range(0, len(texts), self.batch)]
        return [score for part in parts for score in self._scores(part)]

    def _text(self, prompt: str, completion: str) -> str:
        if not self.tokenizer.chat_template:
            return prompt + completion
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
        return templated(self.tokenizer, messages, f"mend or remove that of reward model {self.path!r}")

    def _scores(self, texts: list[str]) -> list[float]:
        # A chat template writes the special tokens itself.
        options = {"add_special_tokens": not self.tokenizer.chat_template, "padding_side": "right"}
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt", **options).to(self.network.device)
        tokens_NL, attention_NL = encoded["input_ids"], encoded["attention_mask"]
        if tokens_NL.shape[1] > self.max_length:
            raise UserError(
                f"reward model {self.path!r} takes {self.max_length} tokens, prompt and completion have "
                f"{tokens_NL.shape[1]}: lower rollout.max_new_tokens, or give a model that takes more"
            )
        logits_N1 = self.network(input_ids=tokens_NL, attention_mask=attention_NL).logits
        scores: list[float] = logits_N1[:, 0].float().tolist()
        return scores


def load_reward_model(path: str, batch: int, device: Any) -> RewardModel:
    """Load the reward model of a checkpoint directory, bf16 on a GPU. Raises UserError where there is none."""
    directory = resolve(path)
    config = _config(path, directory)
    tokenizer = load_tokenizer(path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"reward model {path!r} has no padding token: add pad_token to its tokenizer_config.json")
    config.pad_token_id = tokenizer.pad_token_id  # it finds a text's last token by it
    dtype = torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32
    options = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}  # misfits are told below
    network, report = AutoModelForSequenceClassification.from_pretrained(directory, config=config, **options)
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"reward model {path!r} lacks {missing[0]}: give a checkpoint that was trained as a sequence classifier"
        )
    refuse_misfits(path, report, ("mismatched",))
    return RewardModel(
        path=path,
        network=network.eval().requires_grad_(False).to(device),
        tokenizer=tokenizer,
        batch=batch,
        max_length=min(getattr(config, "max_position_embeddings", 10**9), tokenizer.model_max_length),
    )


def _config(path: str, directory: Path) -> Any:
    """Its settings, of a classifier that transformers has, with one output and weights as safetensors."""
    if not any(directory.glob("*.safetensors")):
        raise UserError(
            f"reward model {path!r} has no *.safetensors file: convert its weights (pickled weights are not opened)"
        )
    config = read_config(directory, path)
    if config.model_type not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES:
        raise UserError(f"reward model {path!r} is a {config.model_type}: give a sequence classifier of transformers")
    if config.num_labels != 1:
        raise UserError(
            f"reward model {path!r} has {config.num_labels} outputs: give a sequence classifier with num_labels 1"
        )
    return config
