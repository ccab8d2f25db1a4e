"""The address and port where the ranks of a job meet."""

import socket
import subprocess
import sys

import pytest

from launch import rendezvous
from launch.rendezvous import check_port, node_address, slurm_rendezvous
from parallel.errors import UserError

TASK = {
    "SLURM_JOB_ID": "31007",
    "SLURM_JOB_NODELIST": "localhost",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch):
    """A Slurm task's environment, with these variables changed."""

    def set_environment(**changed: str) -> None:
        for key, value in (TASK | changed).items():
            monkeypatch.setenv(key, value)

    return set_environment


def test_rank_and_address_come_from_slurms_environment(task):
    task()
    first = slurm_rendezvous()
    assert [first[key] for key in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == list("3142")
    assert first["MASTER_ADDR"] == "localhost"
    task(SLURM_RESTART_COUNT="1")
    restarted = slurm_rendezvous()
    task(SLURM_JOB_ID="31008", SLURM_RESTART_COUNT="0")
    other = slurm_rendezvous()
    assert len({each["MASTER_PORT"] for each in (first, restarted, other)}) == 3


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("a[3-5]", "a3"),
        ("gpu[007,9],x", "gpu007"),
        ("a[1-2]-ib,b", "a1-ib"),
        ("rack[2-3]node[04-05]", "rack2node04"),
    ],
)
def test_ranks_meet_on_the_first_node_of_the_list(
    task, monkeypatch: pytest.MonkeyPatch, nodes: str, first: str
):
    task(SLURM_JOB_NODELIST=nodes)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "10.0.0.1")
    assert slurm_rendezvous()["MASTER_ADDR"] == first


@pytest.fixture
def addresses(monkeypatch: pytest.MonkeyPatch):
    """This host is b; a's name resolves to a loopback address here, as a wrong /etc/hosts has it."""
    monkeypatch.setattr(socket, "gethostname", lambda: "b")
    monkeypatch.setattr(socket, "gethostbyname", {"a": "127.0.1.1", "b": "127.0.1.1", "c": "10.0.0.3"}.get)
    shown = subprocess.CompletedProcess([], 0, "NodeName=a NodeAddr=10.0.0.1 NodeHostName=a", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: shown)


@pytest.mark.parametrize(
    ("node", "address"), [("a", "10.0.0.1"), ("b", "b"), ("b.cluster", "b.cluster"), ("c", "c")]
)
def test_another_hosts_loopback_address_is_not_a_meeting_point(
    addresses, monkeypatch, node: str, address: str
):
    if "." in node:
        monkeypatch.setattr(socket, "gethostbyname", lambda name: "127.0.1.1")
    assert node_address(node) == address


def test_gloo_and_nccl_use_the_interface_that_leads_to_the_first_node(task, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rendezvous, "interface_to", {"localhost": None, "198.51.100.1": "ib0"}.get)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth7")  # the user's choice stays
    task()
    variables = slurm_rendezvous()
    assert variables["GLOO_SOCKET_IFNAME"] == "ib0"
    assert "NCCL_SOCKET_IFNAME" not in variables
    task(SLURM_JOB_NUM_NODES="1")
    assert "GLOO_SOCKET_IFNAME" not in slurm_rendezvous()


@pytest.mark.parametrize("nodes", ["", "a[1-"])
def test_a_damaged_node_list_is_an_error_of_one_line(task, nodes: str):
    task(SLURM_JOB_NODELIST=nodes)
    with pytest.raises(UserError, match="expected a list of nodes"):
        slurm_rendezvous()


def test_a_process_that_srun_did_not_start_gets_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match="SLURM_JOB_ID is not set"):
        slurm_rendezvous()


@pytest.fixture
def used_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_port_in_use_is_named(used_port: int):
    message = f"here:{used_port}: the ranks cannot meet there: Address already in use"
    with pytest.raises(UserError, match=message):
        check_port("here", used_port)


def test_the_command_prints_an_address_or_names_the_port_in_use(used_port: int):
    command = [sys.executable, "-m", "launch.rendezvous"]
    refused = subprocess.run([*command, str(used_port)], capture_output=True, text=True)
    assert refused.returncode == 1
    assert f":{used_port}: the ranks cannot meet there" in refused.stderr
    free = subprocess.run([*command, "0"], capture_output=True, text=True)
    assert socket.inet_aton(free.stdout.strip())
