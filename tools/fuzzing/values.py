"""Strategies that several targets draw from: odd numbers, odd texts, odd JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-3, 20),
    st.sampled_from([2**31, 2**63, -(2**63), 10**20, 10**400, 1e308, -0.0, 1e-320]),
    st.floats(),
)
# With lone surrogates, which JSON can spell.
TEXTS = st.one_of(
    st.text(max_size=20),
    st.text(st.characters(codec=None, exclude_categories=()), max_size=8),
    st.sampled_from(
        ["", " ", "\0", "\ud800", "\x1b[2J", "nan", "inf", "-1", "1e999", "9" * 5000, "true", "null", "{}", "../..",
         "/etc/passwd", "a" * 5000, "\u202e", "１２", "é", "\r\n", "%s%n", "{0}", "$HOME", "~", "~nobody/x", "a:b", ":"]
    ),
)  # fmt: skip
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=8,
)
WORDS = st.one_of(TEXTS, NUMBERS.map(str), JSON.map(lambda value: json.dumps(value)))


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """The bytes of a file: whole, cut, with some changed, doubled, or something else."""
    size = max(1, len(content))
    changes = st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, 255)), min_size=1, max_size=4)
    return st.one_of(
        st.just(content),
        st.integers(0, size).map(lambda end: content[:end]),
        changes.map(lambda places: _changed(content, places)),
        st.integers(0, size).map(lambda start: content[start:]),
        st.binary(max_size=40),
        st.sampled_from(
            [b"", b"\xff\xfe", b"version https://git-lfs.github.com/spec/v1\n", b"[" * 100_000, b"\xef\xbb\xbf"]
        ),
    )


def _changed(content: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(content or b"\0")
    for place, value in places:
        changed[place] = value
    return bytes(changed)


def mutated_json(document: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A JSON object with some keys changed, dropped or added."""
    key = st.sampled_from(sorted(document)) | st.sampled_from(["auto_map", "quantization_config", "dtype", "x"])
    return st.lists(st.tuples(key, st.just(None) | st.tuples(JSON)), min_size=1, max_size=3).map(
        lambda changes: _merged(document, changes)
    )


def _merged(document: dict[str, Any], changes: list[tuple[str, tuple[Any] | None]]) -> dict[str, Any]:
    changed = dict(document)
    for key, value in changes:
        changed.pop(key, None)
        if value is not None:
            changed[key] = value[0]
    return changed
