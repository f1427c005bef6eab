"""A rank that dies, is stopped, fails or never comes ends the others, in one line that names it."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest
import torch

from faults.launch import torchrun_environment
from helpers.processes import start
from unmask.distributed import World, watch
from unmask.distributed.watch import Watch
from unmask.errors import UserError

FATES = {  # what happens to one of two ranks, and what the other says of it
    "dies": "has died",
    "is stopped": "has not been heard of for 1 s: it is stopped, or cut off",
    "raises": "has ended: ValueError: odd",
    "refuses": "has ended: no such thing",
    "never comes": "lives, but has not come for 1 s to where the others wait",
}
ALONE = {"raises": 0, "refuses": 1}  # the victim of fates that are alike for both
CASES = [(fate, victim) for fate in FATES for victim in (0, 1) if ALONE.get(fate, victim) == victim]


def suffer(fate: str, victim: int, waits: bool, place: Path, log: Path) -> int:
    """What a rank does: the victim its fate, the other waits for it, or works in Python."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    watch.BEAT_SECONDS, watch.SILENT_BEATS = 0.1, 10
    watch.ABSENT_SECONDS = 1.0 if fate == "never comes" else 60.0
    watch.GRACE_SECONDS = watch.WAITING_SECONDS = 0.5
    world = World.start()
    (place / f"pid_{world.rank}").write_text(str(os.getpid()))
    try:
        with Watch.of(world) as watched:
            watched.how_to_go_on = lambda: "`unmask train --resume here`"
            world.sum(torch.ones(2))
            if world.rank != victim:
                while not waits:
                    time.sleep(0.01)
                world.sum(torch.ones(2))
            elif fate == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            elif fate == "is stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            elif fate == "raises":
                raise ValueError("odd")
            elif fate == "refuses":
                raise UserError("no such thing")
            time.sleep(30)
    except UserError as error:
        print(f"unmask: error: {error}")
        return 2
    return 0


def launched(fate, victim, waits, place):
    place.mkdir()
    logs = [place / f"log_{rank}" for rank in (0, 1)]
    environments = zip(logs, torchrun_environment(2), strict=True)
    return [start(suffer, fate, victim, waits, place, log, log=log, environment=each) for log, each in environments]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The directory of each case, and how its ranks ended, all at the same time; one that was stopped goes on again."""
    folder = tmp_path_factory.mktemp("fates")
    cases = {(fate, victim, True): folder / f"{fate} {victim}" for fate, victim in CASES}
    cases |= {("dies", 1, False): folder / "dies beside work"}
    ranks = {case: launched(*case, place) for case, place in cases.items()}
    codes = {}
    for (fate, victim, waits), both in ranks.items():
        both[1 - victim].join(timeout=60)
        if fate == "is stopped":
            os.kill(both[victim].pid, signal.SIGCONT)
        both[victim].join(timeout=60)
        codes[fate, victim, waits] = [both[1 - victim].exitcode, both[victim].exitcode]
    return {case: (place, codes[case]) for case, place in cases.items()}


def told(place, rank):
    """Who the lines of a case name, and the lines that a rank printed."""
    names = [
        f"rank {each} (process {(place / f'pid_{each}').read_text()} on {socket.gethostname()})" for each in (0, 1)
    ]
    return names, (place / f"log_{rank}").read_text().splitlines()


def line_of(name, what):
    return f"unmask: error: {name} {what}, so all ranks end; `unmask train --resume here`"


@pytest.mark.parametrize(("fate", "victim"), CASES)
def test_a_lost_rank_ends_the_other_in_one_line_that_names_it(fate, victim, ended):
    place, codes = ended[fate, victim, True]
    names, lines = told(place, 1 - victim)
    assert lines == [line_of(names[victim], FATES[fate])]
    assert codes[0] == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_never_comes_ends_too(victim, ended):
    place, codes = ended["never comes", victim, True]
    names, lines = told(place, victim)
    assert lines == [line_of(names[victim], FATES["never comes"])]
    assert codes[1] == 2


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_goes_on_after_it_was_given_up_ends_too(victim, ended):
    place, codes = ended["is stopped", victim, True]
    names, lines = told(place, victim)
    # The first rank has told the second why it ends.
    assert lines == [line_of(names[1], "has died" if victim == 0 else FATES["is stopped"])]
    assert codes[1] == 2


def test_a_rank_that_is_at_work_when_another_dies_has_some_time_to_end(ended):
    place, codes = ended["dies", 1, False]
    names, lines = told(place, 0)
    assert lines == [line_of(names[1], "has died")]
    assert codes == [2, -signal.SIGKILL]


def test_one_process_alone_watches_nobody():
    before = threading.active_count()
    with Watch.of(World.single()):
        assert threading.active_count() == before
    with pytest.raises(ValueError, match="mine"), Watch.of(World.single()):
        raise ValueError("mine")


def test_the_first_rank_takes_no_connection_of_a_stranger(monkeypatch):
    monkeypatch.setattr(watch, "_STRANGER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        callers = [socket.create_connection(listener.getsockname()[:2]) for _ in range(3)]
        for caller, line in zip(callers, (b"1 guessed\n", b"1 agre", b"1 agreed\n"), strict=True):
            caller.sendall(line)
        met = [watch._accepted(listener, "agreed") for _ in callers]
        assert [list(each) for each in met] == [[], [], [1]]
        for link in (*callers, met[2][1]):
            link.close()
