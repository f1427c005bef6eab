"""What a method may ask of the sampler: states to remember, with completions guessed there. Torch-free to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from unmask.uniforms import Uniforms


@runtime_checkable
class Record(Protocol):
    """`guesses` completions of the states before the steps in `steps`; `own`: the sampler's own proposal is one."""

    @property
    def guesses(self) -> int: ...

    @property
    def own(self) -> bool: ...

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, steps: int) -> list[Tensor]:
        """Slots of the record, each the step of every sample: int64 [N], on the host, known before the rollout."""


@dataclass(frozen=True)
class EveryStep:
    """Every state, with the full completion that the sampler itself proposes there (MDPO)."""

    guesses: int = 1
    own: bool = True

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, steps: int) -> list[Tensor]:
        return [prompt_N.new_full(prompt_N.shape, step) for step in range(steps)]


@dataclass(frozen=True, kw_only=True)
class OneStep:
    """One state a trajectory, p(t) = t^degree / sum_s s^degree over t = 0..T-1, filled at once `guesses` times (DiSPO).

    `shared`: one draw for all samples of a prompt.
    """

    guesses: int = 2
    own: bool = False
    degree: float = 4.0
    shared: bool = False

    def steps(self, uniforms: Uniforms, prompt_N: Tensor, sample_N: Tensor, steps: int) -> list[Tensor]:
        import torch

        power_S = torch.arange(steps, dtype=torch.float64) ** self.degree
        cdf_S = power_S.cumsum(0) / power_S.sum().clamp(min=1e-300)
        key = uniforms.key("recorded step", prompt_N.cpu())
        draw_N = (key if self.shared else key.key(sample_N.cpu())).draw()
        return [torch.searchsorted(cdf_S, draw_N, right=True).clamp(max=steps - 1)]
