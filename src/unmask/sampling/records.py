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

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, steps: int) -> list[Tensor]:
        """For each snapshot the step of every sample before which its canvas is remembered: int64 [N], on the host.

        Known before the rollout, so that no step waits for the device; `steps` are those of a completion.
        """


@dataclass(frozen=True)
class EveryStep:
    """Record of the canvas before every step, with the completion that the sampler itself proposes there (MDPO)."""

    guesses: int = 1
    own: bool = True

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, steps: int) -> list[Tensor]:
        """All steps, a snapshot each."""
        return [prompt_N.new_full(prompt_N.shape, step) for step in range(steps)]


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """Record of one canvas a trajectory, filled at once `guesses` times (DiSPO).

    Before step t with p(t) = t^degree / sum_s s^degree, t = 0..T-1. `shared`: one draw for all samples of a prompt.
    """

    guesses: int = 2
    own: bool = False
    degree: float = 4.0
    shared: bool = False

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, steps: int) -> list[Tensor]:
        """One snapshot, its step drawn by prompt and sample."""
        import torch

        power_S = torch.arange(steps, dtype=torch.float64) ** self.degree
        cdf_S = power_S.cumsum(0) / power_S.sum().clamp(min=1e-300)
        key = uniforms.key("recorded step", prompt_N.cpu())
        draw_N = (key if self.shared else key.key(sample_N.cpu())).draw()
        return [torch.searchsorted(cdf_S, draw_N, right=True).clamp(max=steps - 1)]
