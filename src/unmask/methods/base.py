"""The protocol of a method: settings that put together the terms of its loss. Torch-free to import."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from unmask.objective import Term


class Method(Protocol):
    """Settings of a published method, and the loss that they make. Subclass it in a frozen keyword-only dataclass.

    The module's docstring is what `unmask methods NAME` prints. The module imports no torch: `terms` does.

        @dataclass(frozen=True, kw_only=True)
        class Reinforce(Method):
            \"""Policy gradient on one-step token log-probs.\"""

            name: ClassVar[str] = "reinforce"
            paper: ClassVar[str] = "2504.12216"
            provenance: ClassVar[str] = "paper"

            def terms(self, eos_id: int) -> tuple[Term, ...]:
                from unmask.objective import Term, advantages, likelihood, losses, masks

                return (
                    Term(
                        masking=masks.FullyMasked(),
                        advantage=advantages.centered,
                        likelihood=likelihood.per_token,
                        surrogate=losses.PolicyGradient(),
                        normalizer=likelihood.token_count,
                    ),
                )
    """

    name: ClassVar[str]  # as --method takes it
    paper: ClassVar[str]  # arXiv number
    provenance: ClassVar[str]  # what the file was written from: code, paper, port, reconstructed
    unmasking: ClassVar[str | None] = None  # unmasking rule that the rollout must use; None: any

    @abstractmethod
    def terms(self, eos_id: int) -> tuple[Term, ...]:
        """The terms whose sum is the loss; `eos_id`: the end-of-sequence token, for spans that end there."""
