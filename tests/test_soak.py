"""The soak's judgement: what is flat passes, each kind of growth is named."""

import dataclasses
import os

import pytest

from soak import Sample, growing, look

FLAT = [
    Sample(seconds=t, megabytes=700 + (t % 7), descriptors=12, threads=5, cpu_seconds=0.9 * t, steps=1 + 10 * t)
    for t in range(1, 601)
]


def grown(**rates):
    """The samples with a rate a second put on some numbers."""
    return [
        dataclasses.replace(
            sample, **{name: getattr(sample, name) + rate * sample.seconds for name, rate in rates.items()}
        )
        for sample in FLAT
    ]


def test_growing_takes_what_is_flat():
    assert growing(FLAT) == []


def test_growing_takes_the_bounded_memory_of_rewards():
    filling = [dataclasses.replace(sample, megabytes=700 + min(32, sample.seconds / 10)) for sample in FLAT]
    assert growing(filling) == []


@pytest.mark.parametrize(
    ("rates", "name"),
    [({"megabytes": 1.0}, "megabytes"), ({"descriptors": 0.1}, "descriptors"), ({"threads": 0.1}, "threads")],
)
def test_growing_names_a_leak(rates, name):
    (fault,) = growing(grown(**rates))
    assert fault.startswith(name)


def test_growing_names_steps_that_become_slower():
    slower = [dataclasses.replace(sample, steps=int(100 * sample.seconds**0.5)) for sample in FLAT]
    (fault,) = growing(slower)
    assert fault.startswith("step_milliseconds")


def test_look_reads_this_process(tmp_path):
    (tmp_path / "log").write_text('{"step": 1, "learning_rate": 1}\n{"step": 1, "eval/x": 1}\n')
    before = look(os.getpid(), tmp_path / "log", 0.0)
    with (tmp_path / "log").open(), (tmp_path / "log").open():
        after = look(os.getpid(), tmp_path / "log", 0.0)
    assert after.descriptors == before.descriptors + 2
    assert (before.steps, before.threads >= 1, before.megabytes > 1, before.cpu_seconds > 0) == (1, True, True, True)
