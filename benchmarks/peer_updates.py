"""Published losses on masked inputs that are given: each a call that returns the loss, forward and all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from peers import Checkouts, as_self, load_functions
from plain import BLOCK
from toy import PeerView, Sizes
from unmask.types import ScoringBatch

Loss = Callable[[], Tensor]


def _masked_inputs(inputs_RL: Tensor) -> Callable[..., tuple[Tensor, None]]:
    """What stands in for a trainer's own drawing of masks."""
    return lambda *arguments, **options: (inputs_RL, None)


def d1_loss(peers: Checkouts, network: PeerView, batch: ScoringBatch, sizes: Sizes) -> Loss:
    """DiffuGRPOTrainer.compute_loss of d1, a forward a row."""
    functions = load_functions(
        peers.d1 / "diffu-grpo" / "diffu_grpo_trainer.py", "compute_loss", "_get_per_token_logps", "get_logits"
    )
    trainer = as_self(
        functions,
        args=SimpleNamespace(num_iterations=1, mask_id=sizes.mask_id, cfg_scale=0.0),
        forward_process=_masked_inputs(batch.inputs_FL[batch.forward_R]),
        epsilon=0.5,
    )
    targets_RL = batch.targets_RL
    inputs = {
        "prompt_ids": targets_RL[:, : sizes.prompt],
        "prompt_mask": torch.ones_like(targets_RL[:, : sizes.prompt]),
        "completion_ids": targets_RL[:, sizes.prompt :],
        "completion_mask": batch.scored_RL[:, sizes.prompt :].int(),
        "mask_seeds": [0],
        "advantages": batch.advantage_U,
    }
    return partial(trainer.compute_loss, network, inputs)


def mdpo_loss(
    peers: Checkouts, network: PeerView, batch: ScoringBatch, advantage_N: Tensor, confidence_NL: Tensor, sizes: Sizes
) -> Loss:
    """MDPOTrainer.compute_loss, one step of all samples."""
    functions = load_functions(
        peers.mdpo / "src" / "open_r1" / "mdpo" / "mdpo_trainer.py", "compute_loss", "_get_per_token_logps"
    )
    trainer = as_self(
        functions,
        max_completion_length=sizes.completion,
        temperature=1.0,
        processing_class=SimpleNamespace(mask_token_id=sizes.mask_id),
        epsilon=0.2,
    )
    inputs = {
        "input_ids": batch.inputs_FL,
        "input_mask": torch.ones_like(batch.inputs_FL),
        "target_ids": batch.targets_RL,
        "advantages": advantage_N[:, None].expand(-1, sizes.completion),
        "conf": confidence_NL[:, sizes.prompt :],
    }
    return partial(trainer.compute_loss, network, inputs)


def _spg_trainer(peers: Checkouts, sizes: Sizes) -> Any:
    functions = load_functions(
        peers.spg / "spg" / "spg_trainer.py", "compute_loss", "_get_per_seq_logps", "get_logits", "forward_process"
    )
    arguments = SimpleNamespace(
        forward_type="block_random",
        num_t=2,
        min_t=0.0,
        max_t=1.0,
        block_length=BLOCK,
        use_mask_prompt=True,
        p_mask_prompt=0.15,
        mask_id=sizes.mask_id,
        cfg_scale=0.0,
        logp_estimation="mix",
        eubo_beta=1.5,
        mix_weight=0.5,
        num_iterations=1,
    )
    return as_self(functions, args=arguments)


def spg_masked(peers: Checkouts, tokens_NL: Tensor, sizes: Sizes) -> Tensor:
    """The masked inputs [N, rows, L] that SPG's code draws, always the same."""
    prompt_L = torch.arange(tokens_NL.shape[1]) < sizes.prompt
    ones_NC = torch.ones_like(tokens_NL[:, sizes.prompt :])
    masked_NRL, _ = _spg_trainer(peers, sizes).forward_process(
        tokens_NL, prompt_L, sizes.mask_id, seed=0, completion_mask=ones_NC
    )
    return masked_NRL


def spg_loss(peers: Checkouts, network: PeerView, tokens_NL: Tensor, advantage_N: Tensor, sizes: Sizes) -> Loss:
    """SPGTrainer.compute_loss, its own masks drawn with the seed of `spg_masked`."""
    inputs = {
        "prompt_ids": tokens_NL[:, : sizes.prompt],
        "prompt_mask": torch.ones_like(tokens_NL[:, : sizes.prompt]),
        "completion_ids": tokens_NL[:, sizes.prompt :],
        "completion_mask": torch.ones_like(tokens_NL[:, sizes.prompt :]),
        "mask_seeds": [0],
        "advantages": advantage_N,
        "reward_mask": advantage_N > 0,
    }
    return partial(_spg_trainer(peers, sizes).compute_loss, network, inputs)


def tracerl_loss(peers: Checkouts, network: PeerView, batch: ScoringBatch, old_RL: Tensor) -> Loss:
    """forward_process of dLLM-RL's TraceRL for LLaDA."""
    training = SimpleNamespace(eps=0.2, beta=0.01, use_kl_estimator_k3=True)
    functions = load_functions(
        peers.dllm_rl / "train" / "rl_llada.py",
        "forward_process",
        model=network,
        config=SimpleNamespace(training=training),
    )
    return partial(
        functions.forward_process,
        input_ids=batch.inputs_FL,
        labels=batch.targets_RL,
        p_mask_lm=batch.scored_RL,
        adv=batch.advantage_U,
        logp_old_tok=old_RL,
    )
