"""What to cite for an exported model: the papers of its method, and this library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from unmask import __version__
from unmask.export.source import ExportSource
from unmask.methods.base import Method


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A method's name and the arXiv number of its paper."""

    name: str
    number: str

    @property
    def url(self) -> str:
        """Where it is read."""
        return f"https://arxiv.org/abs/{self.number}"

    @property
    def year(self) -> str:
        """When it was first put there, by its number."""
        return f"20{self.number[:2]}"


def papers(method: Method) -> Iterator[Paper]:
    """The paper of a method, then those of the methods that it builds on."""
    settings: Any = method
    yield Paper(name=method.name, number=method.paper)
    for field in fields(settings):
        if "choices" in field.metadata:
            yield from papers(getattr(settings, field.name))


def bibtex(source: ExportSource) -> str:
    """BibTeX entries of the method's papers and of this library."""
    found = [] if source.trained is None else list(papers(source.trained.method))
    entries = [
        f"@misc{{{paper.name},\n  title = {{{{{paper.name}}}}},\n  year = {{{paper.year}}},\n"
        f"  eprint = {{{paper.number}}},\n  archivePrefix = {{arXiv}},\n  url = {{{paper.url}}}\n}}"
        for paper in found
    ]
    own = (
        "@software{unmask,\n  title = {{unmask: reinforcement-learning post-training of masked diffusion language "
        f"models}}}},\n  version = {{{__version__}}}\n}}"
    )
    return "\n\n".join([*entries, own])
