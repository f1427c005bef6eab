"""What a method is: named settings that compose the terms of a loss. Torch-free to import."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from unmask.objective import Term


class Method(Protocol):
    """Settings of a published method; `terms` composes it. Settings import no torch."""

    name: ClassVar[str]
    paper: ClassVar[str]
    provenance: ClassVar[str]

    def terms(self, eos_id: int) -> tuple[Term, ...]:
        """The objective, the sum of these terms."""
