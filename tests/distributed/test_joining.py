"""Ranks that end, stand still or contradict one another before they watch one another: the others say so, and soon."""

import os
import signal
import threading
import time
from datetime import timedelta

import pytest
from torch.distributed.rendezvous import rendezvous

from faults.launch import torchrun_environment
from helpers.processes import start
from unmask.distributed import World, joining
from unmask.distributed.watch import Watch
from unmask.errors import UserError

ENDED = "another rank has ended, or stands still, while ranks were starting"


def suffer(fate: str) -> int:
    """What a rank does: the second its fate, the first waits for it."""
    joining._JOINING_SECONDS = 2.0
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ["RANK"] == "1" and fate != "other sizes":
        if fate == "dies once joined":
            World.start()
        else:
            next(rendezvous("env://", timeout=timedelta(seconds=30)))
        time.sleep(60 if fate == "stands still" else 0)
        os.kill(os.getpid(), signal.SIGKILL)
    if fate == "interrupted":
        joining._JOINING_SECONDS = 60.0
        threading.Timer(3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        Watch.of(World.start())
    except UserError as error:
        print(f"unmask: error: {error}")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """How the first of two ranks ended, and what both said; by the fate of the second, all at the same time."""
    place, ranks = tmp_path_factory.mktemp("fates"), {}
    for fate in ("dies once met", "dies once joined", "stands still", "interrupted", "other sizes"):
        log, environments = place / fate, torchrun_environment(2)
        if fate == "other sizes":
            environments[1] |= {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3"}
        ranks[fate] = [start(suffer, fate, log=log, environment=each) for each in environments]
    for first, _ in ranks.values():
        first.join(timeout=60)
    for _, second in ranks.values():
        second.kill()
        second.join()
    return {fate: (first.exitcode, (place / fate).read_text()) for fate, (first, _) in ranks.items()}


@pytest.mark.parametrize("fate", ["dies once met", "dies once joined", "stands still"])
def test_a_rank_that_is_lost_before_the_watch_ends_the_other_in_one_line(fate, ended):
    code, said = ended[fate]
    (line,) = [line for line in said.splitlines() if line.startswith("unmask")]
    assert code == 2
    assert ENDED in line
    assert "Traceback" not in said


def test_a_signal_is_heard_while_ranks_join(ended):
    assert ended["interrupted"][0] == 130


def test_ranks_of_different_numbers_are_told_both(ended):
    assert ended["other sizes"][0] == 2
    assert "on another rank: give all the same" in ended["other sizes"][1]
    assert {"WORLD_SIZE is 2 here and 3", "WORLD_SIZE is 3 here and 2"} & {
        line.removeprefix("unmask: error: ").partition(" on another")[0]
        for line in ended["other sizes"][1].splitlines()
    }


def test_a_machine_that_is_not_known_is_refused_with_its_name(monkeypatch):
    monkeypatch.setattr(joining, "_NAMING_SECONDS", 0.1)
    for name, value in (torchrun_environment(2)[0] | {"MASTER_ADDR": "no.such.host.example"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"MASTER_ADDR 'no\.such\.host\.example' is no machine that is known here"):
        World.start()
