"""Hosts reached over ssh: DeepSpeed's launcher, and what is said of hosts that are not as they should be."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.slurm.conftest import Box
from trainer.run_directory.run_directory import RunDirectory

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
    (tmp_path / "hosts").write_text("# two simulated hosts\nnode1 slots=2\nnode2 slots=2\n")
    return tmp_path


def losses(run: Path) -> list[float]:
    return [record["loss"] for record in RunDirectory(run).read_metrics() if "loss" in record]


@pytest.fixture
def alone(work: Path) -> list[float]:
    """The losses of the same config in one process."""
    from trainer.__main__ import main

    assert main([str(work / "tiny.yaml"), f"run_dir={work / 'alone'}"]) == 0
    return losses(work / "alone")


def trainers(box: Box) -> str:
    """What still trains on any host of the box."""
    return box.run("pgrep", "-af", "[-]m trainer|deepspeed.launcher.launch", check=False)


def test_launch_trains_on_all_hosts_to_the_losses_of_one_process(box: Box, work: Path, alone: list[float]):
    out = box.translution("launch", "tiny.yaml", "--hostfile", "hosts", f"run_dir={work / 'run'}", cwd=work)
    assert "node1: tiny  step 6/6" in out
    assert losses(work / "run") == pytest.approx(alone, rel=1e-5)
    assert not trainers(box)
    assert not list(work.glob(".deepspeed_env*"))


def test_deepspeeds_own_command_trains_with_zero_3_and_offsets(box: Box, work: Path, alone: list[float]):
    (work / ".deepspeed_env").write_text("GLOO_SOCKET_IFNAME=eth0\nDS_ACCELERATOR=cpu\nOMP_NUM_THREADS=1\n")
    words = ["parallel.engine=deepspeed", "parallel.zero=3", "parallel.offset=2", f"run_dir={work / 'run'}"]
    deepspeed = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hosts", "--module"]
    box.run("env", "DS_ACCELERATOR=cpu", *deepspeed, "trainer", "tiny.yaml", *words, cwd=work)
    assert losses(work / "run") == pytest.approx(alone, rel=1e-5)


def test_doctor_shows_every_host_and_its_speeds(box: Box, work: Path):
    process = box.popen(sys.executable, "-c", _MAIN, "doctor", "--hostfile", "hosts", cwd=work)
    out, err = process.communicate(timeout=100)
    assert process.returncode in (0, 1), err  # 1: these hosts share a processor, so one may look slow
    for host in ("node1", "node2"):
        assert any(
            line.startswith(host) and "shared" in line and "GFLOP/s" in line for line in out.splitlines()
        )
    assert "GB/s" in out
    assert all("others' speed" in line for line in out.splitlines() if line.startswith("✗")), out
    out = box.run(
        sys.executable,
        "-c",
        _MAIN,
        "doctor",
        "--slurm",
        "--nodes",
        "2",
        "--gpus-per-node",
        "2",
        cwd=work,
        check=False,
    )
    assert "node1" in out
    assert "node2" in out


_MAIN = "from launch.cli import main; main()"


@pytest.fixture
def listener(box: Box) -> Iterator[None]:
    """Something on node1 that holds the port where ranks meet."""
    code = (
        "import os, socket, time; s = socket.socket(); "
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); "
        "s.bind(('', 29500)); s.listen(); print(os.getpid(), flush=True); time.sleep(60)"
    )
    process = box.popen("nsenter", *_enter(box, "node1"), sys.executable, "-c", code)
    assert process.stdout
    number = process.stdout.readline().strip()
    assert number
    yield
    box.run("nsenter", *_enter(box, "node1"), "kill", number)
    process.communicate(timeout=10)


@pytest.fixture
def other_versions(box: Box, tmp_path: Path) -> Iterator[None]:
    """node2 has another torch, as far as its metadata say."""
    from importlib import metadata

    real = Path(str(metadata.distribution("torch")._path)) / "METADATA"  # pyright: ignore
    fake = tmp_path / "METADATA"
    fake.write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.2.3\n")
    box.run("nsenter", *_enter(box, "node2"), "mount", "--bind", fake, real)
    yield
    box.run("nsenter", *_enter(box, "node2"), "umount", real)


@pytest.fixture
def unshared(box: Box, work: Path) -> Iterator[None]:
    """node2 has another directory in the place of the one to work in."""
    box.run("nsenter", *_enter(box, "node2"), "mount", "-t", "tmpfs", "tmpfs", work)
    yield
    box.run("nsenter", *_enter(box, "node2"), "umount", work)


def _enter(box: Box, node: str) -> tuple[str, ...]:
    return "-t", (box.folder / "run" / f"{node}.init.pid").read_text().strip(), "--all"


@pytest.mark.parametrize(
    ("hosts", "breakage", "message"),
    [
        ("node1 slots=2\nnode7 slots=2", None, "node7: cannot be reached over ssh: "),
        ("node1 slots=2\n10.77.0.99 slots=2", None, "10.77.0.99: cannot be reached over ssh: "),
        ("node1 slots=2\nnode2 slots=2", "listener", "node1:29500: the ranks cannot meet there: "),
        ("node1 slots=2\nnode2 slots=2", "other_versions", "node2: has torch 1.2.3, node1 has "),
        ("node1 slots=2\nnode2 slots=2", "unshared", "node2: does not share the directory "),
        ("node1 slots=2\nnode2", None, "hosts:2: 'node2': expected `host slots=N`"),
    ],
)
def test_a_broken_host_is_named_within_a_minute_and_nothing_is_left_running(
    request: pytest.FixtureRequest, box: Box, work: Path, hosts: str, breakage: str | None, message: str
):
    (work / "hosts").write_text(hosts + "\n")
    if breakage:
        request.getfixturevalue(breakage)
    start = time.monotonic()
    out = box.translution("launch", "tiny.yaml", "--hostfile", "hosts", cwd=work, code=2)
    assert time.monotonic() - start < 60
    errors = [line for line in out.splitlines() if line.strip()]
    assert len(errors) == 1
    assert message in errors[0]
    assert not trainers(box)


def test_a_rank_that_fails_ends_the_ranks_of_all_hosts(box: Box, work: Path):
    bad = ("train.lr=1e38", "train.clip=null", "train.steps=20", f"run_dir={work / 'run'}")
    process = box.popen(
        sys.executable, "-c", _MAIN, "launch", "tiny.yaml", "--hostfile", "hosts", *bad, cwd=work
    )
    out, err = process.communicate(timeout=100)
    assert process.returncode not in (0, None)
    assert "not finite since step" in out + err
    box.until(lambda: not trainers(box), 30, "no process is left")


def test_launch_refuses_without_a_hostfile(work: Path):
    command = [sys.executable, "-c", _MAIN, "launch", "tiny.yaml", "--hostfile", "none"]
    done = subprocess.run(command, cwd=work, env=_env(), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: none: cannot be read: No such file or directory\n"


def _env() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent.parent)}
