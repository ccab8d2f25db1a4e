"""Hosts reached over ssh: training with DeepSpeed's launcher, and errors that name a broken host."""

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster
from tests.slurm.workspace import Losses, losses

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module", autouse=True)
def ssh() -> None:
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in ("sshd", "ssh", "pdsh") if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install openssh-server openssh-client pdsh")


@pytest.fixture
def work(tmp_path: Path, tiny: dict) -> Path:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    (tmp_path / "hosts").write_text("# two simulated hosts\nnode1 slots=1\nnode2 slots=1\n")
    return tmp_path


def trainers(cluster: Cluster) -> str:
    """The training processes on all hosts."""
    return cluster.run("pgrep", "-af", "[-]m trainer|deepspeed.launcher.launch", check=False)


def near(expected: Losses) -> list:
    return [(step, pytest.approx(loss, rel=1e-5)) for step, loss in expected]


def test_launch_on_two_hosts_has_the_losses_of_one_process(cluster: Cluster, work: Path, tiny_losses: Losses):
    run = work / "run"
    out = cluster.translution("launch", "tiny.yaml", "--hostfile", "hosts", f"run_dir={run}", cwd=work)
    assert "node1: tiny  step 6/6" in out
    assert losses(run) == near(tiny_losses)
    assert not trainers(cluster)
    assert not list(work.glob(".deepspeed_env*"))


def test_deepspeeds_own_command_trains_with_zero_3_and_offsets(
    cluster: Cluster, work: Path, tiny_losses: Losses
):
    (work / "hosts").write_text("node1 slots=2\nnode2 slots=2\n")
    (work / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    overrides = ["parallel.engine=deepspeed", "parallel.zero=3", "parallel.offset=2"]
    deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hosts", "--module"]
    command = ["env", "DS_ACCELERATOR=cpu", *deepspeed, "trainer", "tiny.yaml", *overrides]
    cluster.run(*command, f"run_dir={work / 'run'}", cwd=work)
    assert losses(work / "run") == near(tiny_losses)


@pytest.mark.soak
def test_ctrl_c_saves_on_all_hosts_and_says_how_to_resume(cluster: Cluster, work: Path):
    arguments = ("tiny.yaml", "--hostfile", "hosts", f"run_dir={work / 'run'}", "train.steps=3000")
    code = "from launch.cli import main; main()"
    process = cluster.popen(sys.executable, "-c", code, "launch", *arguments, cwd=work)
    cluster.until(lambda: losses(work / "run")[10:], 60, "training goes on")
    (pid,) = (int(pid) for pid in cluster.run("pgrep", "-xf", f".*-c {re.escape(code)} launch .*").split())
    cluster.run("kill", "-INT", str(pid))
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, out + err
    step = re.search(r"stopped at step (\d+); resume with: translution launch --hostfile hosts --resume", out)
    assert step, out
    assert not trainers(cluster)
    resumed = ("--hostfile", "hosts", "--resume", work / "run", f"train.steps={int(step[1]) + 3}")
    assert f"going on from step {step[1]}" in cluster.translution("launch", *resumed, cwd=work)


def test_doctor_lists_every_host_with_its_speeds(cluster: Cluster, work: Path):
    # Any exit code: these hosts share cores, so one may look slow.
    out = cluster.translution("doctor", "--hostfile", "hosts", cwd=work, code=None)
    for host in ("node1", "node2"):
        assert any(
            line.startswith(host) and "shared" in line and "GFLOP/s" in line for line in out.splitlines()
        )
    assert "GB/s" in out
    assert all("others' speed" in line for line in out.splitlines() if line.startswith("✗")), out
    options = ("--slurm", "--nodes", "2", "--gpus-per-node", "2")
    out = cluster.translution("doctor", *options, cwd=work, code=None)
    assert "✗ node1: torch sees 0 of 2 GPUs" in out
    assert "node2" in out


@contextmanager
def used_port(cluster: Cluster, work: Path) -> Iterator[None]:
    """A process on node1 listens on the port where the ranks meet."""
    code = (
        "import os, socket, time; s = socket.socket(); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "s.bind(('', 29500)); s.listen(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = cluster.popen(*cluster.on_host("node1", sys.executable, "-c", code))
    assert process.stdout
    pid = process.stdout.readline().strip()
    assert pid
    try:
        yield
    finally:
        cluster.run(*cluster.on_host("node1", "kill", pid))
        process.communicate(timeout=10)


def other_torch(cluster: Cluster, work: Path) -> AbstractContextManager[None]:
    """On node2, torch's metadata name another version."""
    real = Path(str(metadata.distribution("torch")._path)) / "METADATA"  # pyright: ignore
    fake = work / "METADATA"
    fake.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    return cluster.mounted("node2", "--bind", fake, real)


def unshared_folder(cluster: Cluster, work: Path) -> AbstractContextManager[None]:
    """node2 has another folder in place of the working directory."""
    return cluster.mounted("node2", "-t", "tmpfs", "tmpfs", work)


@pytest.mark.parametrize(
    ("hosts", "breakage", "message"),
    [
        ("node1 slots=2\nnode7 slots=2", None, "node7: cannot be reached over ssh: "),
        ("node1 slots=2\n10.77.0.99 slots=2", None, "10.77.0.99: cannot be reached over ssh: "),
        ("node1 slots=2\nnode2 slots=2", used_port, "node1:29500: the ranks cannot meet there: "),
        ("node1 slots=2\nnode2 slots=2", other_torch, "node2: has torch 1.2.3, node1 has "),
        ("node1 slots=2\nnode2 slots=2", unshared_folder, "node2: does not share the directory "),
        ("node1 slots=2\nnode2", None, "hosts:2: 'node2': expected `host slots=N`"),
    ],
)
def test_a_broken_host_is_named_within_a_minute_and_nothing_is_left_running(
    cluster: Cluster, work: Path, hosts: str, breakage: Callable | None, message: str
):
    (work / "hosts").write_text(hosts + "\n")
    with breakage(cluster, work) if breakage else nullcontext():
        start = time.monotonic()
        out = cluster.translution("launch", "tiny.yaml", "--hostfile", "hosts", cwd=work, code=2)
        assert time.monotonic() - start < 60
    errors = [line for line in out.splitlines() if line.strip()]
    assert len(errors) == 1
    assert message in errors[0]
    assert not trainers(cluster)


def test_a_rank_that_fails_ends_the_ranks_of_all_hosts(cluster: Cluster, work: Path):
    diverging = ("train.lr=1e38", "train.clip=null", "train.steps=20", f"run_dir={work / 'run'}")
    arguments = ("launch", "tiny.yaml", "--hostfile", "hosts", *diverging)
    out = cluster.translution(*arguments, cwd=work, code=None)
    assert "not finite since step" in out
    cluster.until(lambda: not trainers(cluster), 30, "no process is left")
