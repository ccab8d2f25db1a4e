"""Where the ranks of a Slurm job meet."""

import socket

import pytest

from launch import rendezvous
from parallel.errors import UserError

TASK = {
    "SLURM_JOB_ID": "31007",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
}


def test_a_tasks_place_comes_from_slurms_environment():
    env = rendezvous.rendezvous(TASK)
    assert (env["RANK"], env["LOCAL_RANK"], env["WORLD_SIZE"], env["LOCAL_WORLD_SIZE"]) == (
        "3",
        "1",
        "4",
        "2",
    )
    assert env["MASTER_ADDR"] == "localhost"
    again = rendezvous.rendezvous(TASK | {"SLURM_RESTART_COUNT": "1"})
    other = rendezvous.rendezvous(TASK | {"SLURM_JOB_ID": "31008"})
    assert len({each["MASTER_PORT"] for each in (env, again, other)}) == 3


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("a[3-5]", "a3"), ("gpu[007,9],x", "gpu007"), ("a[1-2]-ib,b", "a1-ib")],
)
def test_the_first_node_of_a_list(nodes: str, first: str):
    assert rendezvous.first_node(nodes) == first


def test_a_process_that_srun_did_not_start_is_told_so():
    with pytest.raises(UserError, match="SLURM_JOB_ID is not set"):
        rendezvous.rendezvous({})


def test_a_port_that_is_taken_is_named():
    with socket.socket() as held:
        held.bind(("", 0))
        held.listen()
        port = held.getsockname()[1]
        with pytest.raises(
            UserError, match=f"here:{port}: the ranks cannot meet there: Address already in use"
        ):
            rendezvous.check_port("here", port)
    rendezvous.check_port("here", port)
