"""Columns that a cache recomputes, and a block's candidates, against plain Python loops; no model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.sampling.caching import CACHINGS
from unmask.sampling.columns import (
    CANDIDATES,
    ActiveBlocks,
    CanvasLayout,
    StepFlags,
    all_columns,
    block_candidates,
    finished_columns,
    prefix_window,
    recompute_window,
    steps_with_masks,
    suffix_positions,
)

BLOCK, BLOCKS = 4, 3
POLICIES = {name: caching for name, caching in CACHINGS.items() if caching is not None}

some = settings(max_examples=40, deadline=None, derandomize=True, database=None)
block_lists = st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=4)


def layout_of(*, start=5, shift=False, block_causal=False):
    return CanvasLayout(
        start=start, length=start + BLOCKS * BLOCK, block_length=BLOCK, shift=shift, block_causal=block_causal
    )


def active_of(blocks):
    return ActiveBlocks(block_N1=torch.tensor(blocks)[:, None], first=min(blocks), last=max(blocks))


def block_table(layout, offsets):
    """Block of each completion position [N, C]; `offsets`: tokens of a block of the model's that the prompt fills."""
    return torch.tensor([[(offset + place) // BLOCK for place in range(layout.completion)] for offset in offsets])


def columns_of(window, row):
    """The set of columns that a sample runs."""
    if isinstance(window.columns, slice):
        return set(range(window.columns.start, window.columns.stop))
    columns = window.columns[row].tolist()
    assert columns == sorted(columns)
    return set(columns)


@st.composite
def steps(draw):
    """Blocks, and per sample the masked candidates and what the step before changed (candidates that it revealed)."""
    blocks = draw(block_lists)
    shape = st.lists(st.sampled_from(["masked", "changed", "settled"]), min_size=BLOCK, max_size=BLOCK)
    return blocks, [draw(shape) for _ in blocks]


def flags_of(layout, blocks, fates):
    masked_NC = torch.tensor([[fate == "masked" for fate in row] for row in fates])
    changed_NL = torch.zeros((len(blocks), layout.length), dtype=torch.bool)
    for row, (block, places) in enumerate(zip(blocks, fates, strict=True)):
        for place, fate in enumerate(places):
            changed_NL[row, layout.block_start(block) + place] = fate == "changed"
    before = max(sum(fate != "settled" for fate in row) for row in fates)
    return StepFlags(masked_NC=masked_NC, changed_NL=changed_NL, most_masked_before=max(1, before))


def expected_columns(caching, layout, block, places):
    """What the policy's words say: the columns of one sample, whatever the others."""
    begin, end = layout.block_start(block), layout.block_start(block + 1)
    columns = set()
    for place, fate in enumerate(places):
        if not caching.delayed or fate == "masked":
            columns |= {begin + place, begin + place - layout.shift}
        elif fate == "changed":
            columns.add(begin + place)
    if caching.suffix:
        columns |= set(range(end, layout.length))
    return columns


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("caching", POLICIES.values(), ids=POLICIES)
@some
@given(step=steps())
def test_recompute_window_equals_loops(caching, shift, step):
    blocks, fates = step
    layout = layout_of(shift=shift)
    candidates = block_candidates(layout, block_table(layout, [0] * len(blocks)), torch.tensor(blocks)[:, None])
    flags = flags_of(layout, blocks, fates)
    window = recompute_window(caching, layout, active_of(blocks), candidates.column_NC, flags)
    assert window.end == layout.length
    for row, (block, places) in enumerate(zip(blocks, fates, strict=True)):
        expected = expected_columns(caching, layout, block, places)
        if expected:  # else some column is run, for every row needs one
            assert columns_of(window, row) == expected


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("caching", POLICIES.values(), ids=POLICIES)
@some
@given(step=steps())
def test_recompute_window_of_a_sample_does_not_depend_on_its_neighbours(caching, shift, step):
    blocks, fates = step
    layout = layout_of(shift=shift)

    def window_of(rows):
        chosen, places = [blocks[row] for row in rows], [fates[row] for row in rows]
        candidates = block_candidates(layout, block_table(layout, [0] * len(rows)), torch.tensor(chosen)[:, None])
        flags = flags_of(layout, chosen, places)
        return recompute_window(caching, layout, active_of(chosen), candidates.column_NC, flags)

    together = window_of(range(len(blocks)))
    for row in range(len(blocks)):
        if expected_columns(caching, layout, blocks[row], fates[row]):
            assert columns_of(together, row) == columns_of(window_of([row]), 0)


def test_recompute_window_widths_are_known_to_the_host():
    """A slice where blocks are the same; else as many columns as the bounds say, whatever is flagged."""
    layout = layout_of()
    candidates = block_candidates(layout, block_table(layout, [0, 0]), torch.tensor([[0], [1]]))
    nothing = StepFlags(
        masked_NC=torch.zeros(2, BLOCK, dtype=torch.bool),
        changed_NL=torch.zeros(2, layout.length, dtype=torch.bool),
        most_masked_before=3,
    )
    widths = {}
    for name, caching in POLICIES.items():
        window = recompute_window(caching, layout, active_of([0, 1]), candidates.column_NC, nothing)
        widths[name] = window.columns.shape[1]
    assert widths == {"prefix": 12, "dual": 4, "prefix_delayed": 3 + 8, "dual_delayed": 3}
    same = recompute_window(POLICIES["prefix"], layout, active_of([1, 1]), candidates.column_NC, nothing)
    assert same.columns == slice(9, 17)
    alone = recompute_window(POLICIES["dual"], layout, active_of([1, 1]), candidates.column_NC, nothing)
    assert alone.columns == slice(9, 13)


def test_recompute_window_with_shift_and_no_prompt_stays_on_the_canvas():
    layout = layout_of(start=0, shift=True)
    candidates = block_candidates(layout, block_table(layout, [0, 0]), torch.tensor([[0], [1]]))
    flags = flags_of(layout, [0, 1], [["masked"] * BLOCK] * 2)
    ragged = recompute_window(POLICIES["dual"], layout, active_of([0, 1]), candidates.column_NC, flags)
    assert columns_of(ragged, 0) == {0, 1, 2, 3}
    assert columns_of(ragged, 1) == {3, 4, 5, 6, 7}
    same = recompute_window(POLICIES["dual"], layout, active_of([0, 0]), candidates.column_NC[:1], flags)
    assert same.columns == slice(0, 4)


def real_columns(layout, offset, block):
    """Canvas columns of a block of the model's own."""
    return [layout.start + place for place in range(layout.completion) if (offset + place) // BLOCK == block]


@some
@given(blocks=block_lists, data=st.data())
def test_prefix_window_runs_all_that_may_have_changed(blocks, data):
    """Wherever prompts end in a block: every column of the active blocks, at the first step those of the one before."""
    offsets = [data.draw(st.integers(0, BLOCK - 1)) for _ in blocks]
    layout = layout_of(block_causal=True)
    active = active_of(blocks)
    cached = finished_columns(layout, max(0, active.first - 1))
    for index in (0, 1):
        window = prefix_window(layout, active, index=index, cached_columns=cached)
        for row, (offset, block) in enumerate(zip(offsets, blocks, strict=True)):
            run = columns_of(window, row)
            changed = [block, block - 1] if index == 0 and block == active.first else [block]
            for number in changed:
                assert set(real_columns(layout, offset, number)) <= run
        assert window.end == max(columns_of(window, 0)) + 1 <= layout.length


@pytest.mark.parametrize("offset", range(BLOCK))
@pytest.mark.parametrize("first", range(BLOCKS + 1))
def test_finished_columns_are_before_the_block_of_every_sample(first, offset):
    layout = layout_of(block_causal=True)
    finished = finished_columns(layout, first)
    assert all(column >= finished for column in real_columns(layout, offset, first))
    if offset == BLOCK - 1 and first > 0:  # the bound is reached by a prompt that leaves one position of its last block
        assert finished == layout.start + 1 + (first - 1) * BLOCK


@pytest.mark.parametrize("block_causal", [False, True])
@pytest.mark.parametrize("first", range(BLOCKS))
def test_suffix_positions_bound_what_is_behind_the_block(first, block_causal):
    layout = layout_of(block_causal=block_causal)
    offsets = range(BLOCK) if block_causal else [0]
    behind = [sum((offset + place) // BLOCK > first for place in range(layout.completion)) for offset in offsets]
    assert suffix_positions(layout, first) >= max(behind)
    if not block_causal:
        assert suffix_positions(layout, first) == behind[0]


@pytest.mark.parametrize("scope", CANDIDATES)
@some
@given(blocks=st.lists(st.integers(0, BLOCKS), min_size=1, max_size=4), data=st.data())
def test_candidates_equal_loops(scope, blocks, data):
    offsets = [data.draw(st.integers(0, BLOCK - 1)) for _ in blocks]
    layout = layout_of(block_causal=True)
    found = CANDIDATES[scope](layout, block_table(layout, offsets), torch.tensor(blocks)[:, None])
    for row, (offset, block) in enumerate(zip(offsets, blocks, strict=True)):
        numbers = [block] if scope == "block" else range(block + 1)
        expected = sorted(column for number in numbers for column in real_columns(layout, offset, number))
        assert found.column_NC[row][found.candidate_NC[row]].tolist() == expected


def test_all_columns_are_the_canvas():
    layout = layout_of()
    assert all_columns(layout) == (slice(0, 17), 17)


@pytest.mark.parametrize("remasks", [False, True])
@pytest.mark.parametrize("counts", [(2, 1, 1), (1, 1, 1, 1, 0, 0), (0, 1, 3), (4,)], ids=str)
def test_steps_with_masks_equal_loops(counts, remasks):
    layout, offsets = layout_of(block_causal=True), range(BLOCK)
    found_NS = steps_with_masks(block_table(layout, offsets), BLOCKS + 1, counts, remasks=remasks)
    for offset, found in zip(offsets, found_NS.tolist(), strict=True):
        expected = []
        for block in range(BLOCKS + 1):
            masked = BLOCK if remasks else len(real_columns(layout, offset, block))
            for count in counts:
                expected.append(masked > 0)
                masked -= count
        assert found == expected
