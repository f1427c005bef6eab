"""What a method may ask of the sampler: states to remember, with completions guessed there. Torch-free to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.uniforms import Uniforms


@runtime_checkable
class Record(Protocol):
    """What a method asks the sampler to remember: partly masked canvases, and completions guessed there."""

    @property
    def guesses(self) -> int:
        """Completions guessed at each recorded canvas."""

    @property
    def own(self) -> bool:
        """Whether the sampler's own proposals are the guess (one then); else guesses are drawn besides."""

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, masked_NS: Tensor) -> list[Tensor]:
        """For each snapshot the step of every sample before which its canvas is remembered: int64 [N], on the host.

        Known before the rollout, so that no step waits for the device. `masked_NS`: which of all steps find something
        masked in the sample's own block, see `steps_with_masks`.
        """


@dataclass(frozen=True)
class EveryStep:
    """Record of the canvas before every step, with the completion that the sampler itself proposes there (MDPO)."""

    guesses: int = 1
    own: bool = True

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, masked_NS: Tensor) -> list[Tensor]:
        """All steps, a snapshot each."""
        return [prompt_N.new_full(prompt_N.shape, step) for step in range(masked_NS.shape[1])]


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """Record of one canvas a trajectory, filled at once `guesses` times (DiSPO).

    Before step t with p(t) = t^degree / sum_s s^degree, t = 0..T-1 counting the steps that find something masked.
    `shared`: one draw for all samples of a prompt.
    """

    guesses: int = 2
    own: bool = False
    degree: float = 4.0
    shared: bool = False

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, masked_NS: Tensor) -> list[Tensor]:
        """One snapshot, its step drawn by prompt and sample."""
        import torch

        count_NS = masked_NS.long().cumsum(1)
        weight_NS = ((count_NS - 1).clamp(min=0).double() ** self.degree) * masked_NS
        cdf_NS = weight_NS.cumsum(1)
        key = uniforms.key("recorded step", prompt_N.cpu())
        draw_N = (key if self.shared else key.key(sample_N.cpu())).draw()
        step_N1 = torch.searchsorted(cdf_NS / cdf_NS[:, -1:].clamp(min=1e-300), draw_N[:, None], right=True)
        return [torch.minimum(step_N1[:, 0], count_NS.argmax(1))]  # at most the last of them
