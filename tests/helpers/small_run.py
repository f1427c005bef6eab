"""A small model really trained for a step, beside the plan of the same settings."""

import json
from functools import cached_property
from pathlib import Path

import torch

from unmask.denoisers.adapters import AdaptersOff, add_adapters
from unmask.denoisers.base import Denoiser
from unmask.denoisers.layers.fast_layers import fast_layers
from unmask.denoisers.layers.recompute import recompute_layers
from unmask.distributed import World
from unmask.objective.objective import Objective, frozen_copy
from unmask.plan.estimate import make_plan
from unmask.settings.commands import PlanSettings
from unmask.settings.reader import build
from unmask.training.mismatch import sampling_mismatch
from unmask.training.update import Updater
from unmask.types import Prompts
from unmask.uniforms import Uniforms

PROMPT, COMPLETION = 12, 16
SHAPE = {
    "model_type": "llama",
    "is_causal": False,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "block_length": None,
}


def settings_of(directory, method, *, shape=None, rollout=None, train=None, prompt=PROMPT) -> PlanSettings:
    """Settings whose model is a config.json in the directory."""
    (directory / "config.json").write_text(json.dumps(SHAPE | (shape or {})))
    steps = COMPLETION if method["name"] == "just-grpo" else 4
    rule = "left_to_right" if method["name"] == "just-grpo" else "low_confidence"
    sizes = {"prompts": 2, "num_generations": 4, "max_new_tokens": COMPLETION, "block_length": 8, "steps": steps}
    return build(
        PlanSettings,
        {
            "model": str(directory),
            "method": method,
            "rollout": sizes | {"unmasking": {"name": rule}} | (rollout or {}),
            "train": train or {},
            "prompt_tokens": prompt,
        },
    )


class SmallRun:
    """What a trainer would do with the settings: one rollout, its update batches, its updates."""

    def __init__(self, settings: PlanSettings) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.settings, train = settings, settings.train
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(settings.model))
            network = network.to(torch.bfloat16 if train.param_dtype == "bf16" else torch.float32)
            fast_layers(network)
            block_length = json.loads((Path(settings.model) / "config.json").read_text())["block_length"]
            denoiser = Denoiser(network, mask_id=2, eos_id=1, block_length=block_length).eval()
            if train.lora_rank:
                add_adapters(denoiser, train.lora_rank, train.lora_alpha)
        terms = settings.method.terms(1)
        reference = None
        if any(term.reads("reference") for term in terms):
            reference = AdaptersOff(denoiser) if train.lora_rank else frozen_copy(denoiser)
        blends = train.num_iterations > 1 and any(term.blend is not None for term in terms)
        old = frozen_copy(denoiser) if blends else None
        if train.gradient_checkpointing:
            recompute_layers(denoiser)
        self.objective = Objective(
            terms=terms,
            denoiser=denoiser,
            reference=reference,
            old=old,
            micro_batch=train.micro_batch,
            world=World.single(precision=train.precision),
        )
        self.updater = Updater(
            objective=self.objective,
            optimizer=torch.optim.AdamW([weight for weight in denoiser.parameters() if weight.requires_grad]),
            max_grad_norm=1.0,
        )

    @cached_property
    def plan(self):
        """What is planned of it; this takes longer than all that is done."""
        return make_plan(self.settings)

    def sample(self):
        """The rollout."""
        rollout, width = self.settings.rollout, self.settings.prompt_tokens
        count = rollout.prompts * rollout.num_generations
        index = torch.arange(count)
        prompts = Prompts(
            tokens_NP=torch.arange(count * width).view(count, width) % 500 + 10,
            attention_NP=torch.arange(width) >= (index // rollout.num_generations % 2)[:, None],  # some are padded
            prompt_N=index // rollout.num_generations,
            sample_N=index % rollout.num_generations,
        )
        with self.objective.world.autocast():
            self.rollout = rollout.sampler(self.settings.task)(
                self.objective.denoiser, prompts, Uniforms(), self.objective.record, group_size=rollout.num_generations
            )

    def rescore(self):
        """What tells how far a cache is from exact."""
        with self.objective.world.autocast():
            sampling_mismatch(self.objective.denoiser, self.rollout, Uniforms(), self.objective.world)

    def prepare(self):
        """The update batches of all updates."""
        shape = (self.settings.rollout.prompts, self.settings.rollout.num_generations)
        rewards = []
        for term in self.objective.terms:
            extra = () if term.record is None else (len(self.rollout.snapshots) * term.record.guesses,)
            rewards.append(Uniforms().key(torch.arange(torch.Size(shape + extra).numel())).draw().float())
            rewards[-1] = rewards[-1].view(shape + extra)
        uniforms, updates = Uniforms(), self.settings.train.num_iterations
        self.prepared = self.objective.prepare(self.rollout, rewards, uniforms, updates)

    def update(self):
        """The optimizer updates."""
        for update_batches in self.prepared:
            self.updater.update(update_batches, learning_rate=1e-4)
