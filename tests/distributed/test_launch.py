"""Launch: what the environment says of a rank, and what it says in contradiction."""

import pytest

from unmask.distributed.launch import Launch
from unmask.errors import UserError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_read_of_torchrun_and_of_nothing():
    assert (
        Launch.read(WHOLE, gpus=0) == Launch.read(WHOLE, gpus=2) == Launch(rank=1, size=2, local_rank=1, local_size=2)
    )
    assert Launch.read(WHOLE | {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, gpus=2).local_size == 2
    assert Launch.read({}, gpus=0) == Launch.read({}, gpus=8) == Launch(rank=0, size=1, local_rank=0)
    assert Launch.read({"RANK": "0", "WORLD_SIZE": "1"}, gpus=1) == Launch()
    assert Launch.read(WHOLE | {"SLURM_STEP_NUM_TASKS": "2"}, gpus=2).rank == 1  # torchrun on two machines


@pytest.mark.parametrize("missing", WHOLE)
def test_read_names_what_is_missing_of_several_ranks(missing):
    with pytest.raises(UserError, match=f"{missing}.*torchrun"):
        Launch.read({name: value for name, value in WHOLE.items() if name != missing}, gpus=0)


@pytest.mark.parametrize(
    ("environment", "gpus", "says"),
    [
        ({"RANK": "0", "WORLD_SIZE": "1"}, 8, "WORLD_SIZE is 1, and 8 GPUs are visible"),
        (WHOLE, 1, "LOCAL_RANK 1 has no GPU of its own"),
        (WHOLE | {"RANK": "2"}, 0, "RANK 2 is none of 2 ranks"),
        ({"RANK": "0"}, 0, "the environment has RANK and no WORLD_SIZE"),
        (WHOLE | {"WORLD_SIZE": "two"}, 0, "WORLD_SIZE is 'two'"),
        (WHOLE | {"WORLD_SIZE": "0"}, 0, "WORLD_SIZE is '0'"),
        (WHOLE | {"WORLD_SIZE": "9" * 21}, 0, "WORLD_SIZE is '999"),
        (WHOLE | {"WORLD_SIZE": "٢"}, 0, "WORLD_SIZE is '٢'"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "two"}, 0, "LOCAL_WORLD_SIZE is 'two'"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "0"}, 0, "LOCAL_WORLD_SIZE is '0'"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "1"}, 0, "LOCAL_RANK 1 of LOCAL_WORLD_SIZE 1"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "3"}, 0, "LOCAL_WORLD_SIZE 3 of WORLD_SIZE 2"),
        (WHOLE | {"LOCAL_RANK": "-1"}, 0, "LOCAL_RANK is '-1'"),
        *((WHOLE | {"MASTER_PORT": port}, 0, f"MASTER_PORT is '{port}'") for port in ("", "abc", "0", "65536")),
        (WHOLE | {"MASTER_ADDR": ""}, 0, "MASTER_ADDR is ''"),
        ({"ACCELERATE_USE_CPU": "True"}, 0, "accelerate launch, whose settings are not read"),
        (WHOLE | {"ACCELERATE_MIXED_PRECISION": "no"}, 2, "accelerate launch, whose settings are not read"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, 4, "SLURM_STEP_NUM_TASKS is 4"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 0, "each of these processes would train alone"),
    ],
)
def test_read_refuses_an_environment_that_says_two_things(environment, gpus, says):
    with pytest.raises(UserError, match=says):
        Launch.read(environment, gpus=gpus)
