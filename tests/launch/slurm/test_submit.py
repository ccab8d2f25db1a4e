"""Before submitting: the batch script, the memory check, the time a save takes, the copy of the code."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm.allocation import read_allocation
from launch.slurm.code_snapshot import snapshot
from launch.slurm.job.train_task import TrainTask
from launch.slurm.preflight import save_warning
from launch.slurm.runs.job_record import JobRecord, write_record
from parallel.code_folder import CODE_FOLDER
from tests.launch.slurm.recorded import RecordedSlurm

BASH = shutil.which("bash") or "/bin/bash"
GPUS = ("--nodes", "2", "--gpus-per-node", "4", "--time", "60")


@pytest.fixture
def dry(config_file: Path, translution: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """`translution submit … --dry-run` where there is no Slurm, from a folder of its own."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", "")
    return lambda *arguments: translution("submit", config_file, *arguments, "--dry-run")


def test_a_dry_run_prints_the_batch_script_and_creates_no_file(dry, tmp_path: Path):
    done = dry(*GPUS, "--signal-delay", "90", "--setup", "module load x")
    assert done.code == 0, done.err
    for line in (
        "#SBATCH --nodes=2",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --requeue",
        "#SBATCH --signal=USR2@90",
        f"#SBATCH --chdir={tmp_path / 'here'}",
        "module load x",
    ):
        assert line in done.out.splitlines()
    assert "srun" in done.out
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("image", "mounts"),
    [
        ("image.sqsh", "--container-mounts={0}:{0},"),
        ("image.sif", "apptainer exec --nv --bind '{0},"),
    ],
)
def test_a_container_mounts_the_folder_the_runs_and_the_data(dry, tmp_path: Path, image: str, mounts: str):
    digits = Path(__file__).parent
    done = dry(*GPUS, "--container", image, "--runs", tmp_path / "elsewhere", f"data.path={digits}")
    assert image in done.out
    assert mounts.format(tmp_path / "here") in done.out
    assert str(tmp_path / "elsewhere" / "<submission>") in done.out
    assert f",{digits}" in done.out


def test_a_job_that_does_not_fit_into_memory_is_refused_without_force(dry, tmp_path: Path):
    cluster = tmp_path / "small.yaml"
    cluster.write_text("gpus_per_node: 1\ndevice_memory_gb: 0.00001\n")
    refused = dry("--cluster", cluster)
    assert refused.code == 2
    assert "does not fit into the 10 kB of a process" in refused.err
    assert "give --force" in refused.err
    assert dry("--cluster", cluster, "--force").code == 0


def test_a_signal_delay_too_short_to_save_is_warned_about():
    assert save_warning(10, "measured", 60) is None
    assert save_warning(40, "measured", 60) == (
        "warning: a save takes about 40 s (measured), too long for signal_delay=60 s; give --signal-delay 120"
    )


def test_the_snapshot_holds_the_code_and_is_made_once(tmp_path: Path):
    code = snapshot(tmp_path)
    for name in ("models", "parallel", "trainer", "launch"):
        for path in (CODE_FOLDER / name).rglob("*.py*"):  # with bytecode, which is valid at its source's time
            copy = code / path.relative_to(CODE_FOLDER)
            assert copy.read_bytes() == path.read_bytes()
            assert int(copy.stat().st_mtime) == int(path.stat().st_mtime)
    (code / "version.txt").write_text("the first")
    assert snapshot(tmp_path) == code
    assert (code / "version.txt").read_text() == "the first"


def test_runs_of_one_version_share_their_code_and_keep_it_when_one_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    runs = [tmp_path / name for name in ("a", "b", "c")]
    for run in runs:
        run.mkdir()
    module = Path("trainer") / "train.py"
    first, second = snapshot(runs[0]) / module, snapshot(runs[1]) / module
    assert first.samefile(second)
    shutil.rmtree(runs[0])
    assert second.read_bytes() == (CODE_FOLDER / module).read_bytes()
    monkeypatch.setattr("trainer.run_directory.run_directory.code_version", lambda: "another")
    assert not (snapshot(runs[2]) / module).samefile(second)


def test_a_sweeps_dry_run_shows_the_array(dry):
    out = dry(*GPUS, "--sweep", "seed=1,2,3", "--parallel", "2").out
    assert "#SBATCH --array=0-2%2" in out.splitlines()
    assert "/%A_%a_0_log.out" in out


def test_any_option_of_sbatch_and_mail_are_passed_through(dry):
    words = ("--exclude", "node[3-4]", "--nodelist", "node1", "--sbatch", "reservation=night")
    out = dry(
        *GPUS, *words, "--sbatch", "exclusive", "--notify", "a@b.org", "--notify", "https://c.org/x"
    ).out
    for line in (
        "#SBATCH --exclude='node[3-4]'",
        "#SBATCH --nodelist=node1",
        "#SBATCH --reservation=night",
        "#SBATCH --exclusive",
        "#SBATCH --mail-user=a@b.org",
        "#SBATCH --mail-type=END,FAIL,INVALID_DEPEND",
    ):
        assert line in out.splitlines()
    assert "c.org" not in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sbatch", "time=5"], "sbatch.0=time=5: is set by --time"),
        (["--sbatch", "=5"], "sbatch.0==5: expected an option of sbatch"),
        (["--notify", "me"], "notify.0=me: expected a mail address, or a webhook's URL"),
        (["data.path=nowhere"], "data.path=nowhere: no such file or folder on this machine; give --force"),
        (["train.init_from=nowhere"], "train.init_from=nowhere: no such file or folder on this machine"),
    ],
)
def test_a_mistake_is_named_before_anything_is_written(dry, tmp_path: Path, words: list, message: str):
    outcome = dry(*words)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert message in outcome.err
    assert not list((tmp_path / "here").iterdir())


def test_data_that_only_the_nodes_see_is_taken_with_force(dry):
    assert dry("data.path=nowhere", "--force").code == 0


@pytest.mark.parametrize("bind", [True, False])
def test_bind_reaches_the_trainer(bind: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    allocation = read_allocation(None, {"bind": bind}).model_dump()
    write_record(tmp_path, JobRecord("digest", allocation, ["7"]))
    slurms = {"JOB_ID": "7", "JOB_NODELIST": "localhost", "JOB_NUM_NODES": "1", "NTASKS": "1"}
    for name, value in (slurms | {"PROCID": "1", "LOCALID": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    given: list[str] = []
    monkeypatch.setattr("trainer.__main__.main", lambda arguments: given.extend(arguments) or 0)
    handlers = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    monkeypatch.setattr(os, "environ", dict(os.environ))
    try:
        assert TrainTask(tmp_path)() == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ("--bind" in given) is bind


def test_hosts_are_checked_before_training_unless_told_not_to(dry):
    check = "launch.slurm.job.check_hosts"
    assert check in dry("--nodes", "2").out
    assert check in dry("--gpus-per-node", "1").out
    assert check not in dry("--nodes", "1").out
    assert check not in dry("--nodes", "2", "--no-check").out


def test_setup_commands_that_fail_or_exit_leave_a_word_in_the_log(dry, tmp_path: Path):
    script = dry("--setup", "export A=5; test $A = 6", "--setup", "exit 3").out
    lines = script[script.index("trap ") : script.index("trap - EXIT")].replace(sys.executable, "true")
    done = subprocess.run([BASH, "-c", lines], capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stdout.splitlines() == [
        "warning: a setup command returned 1: export A=5; test $A = 6",
        "error: a setup command ended the job with exit code 3: exit 3",
    ]


@pytest.fixture
def on_cluster(
    config_file: Path,
    translution: Callable,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    recorded: RecordedSlurm,
):
    """`translution submit` where Slurm's commands answer as recorded; `sbatch` refuses."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recorded.says("scontrol", "PartitionName=main Default=YES TotalNodes=6 MaxTime=UNLIMITED\n")
    recorded.says("sinfo", "main*|8000|8|gpu:2|(null)\n")
    recorded.says("sbatch", "sbatch: error: Batch job submission failed: Invalid qos specification\n", code=1)
    return lambda *arguments: translution("submit", config_file, "--no-rehearsal", *arguments)


@pytest.mark.parametrize("sweep", [[], ["--sweep", "seed=1,2"]])
def test_nothing_is_left_behind_where_sbatch_refuses(on_cluster, tmp_path: Path, sweep: list):
    outcome = on_cluster("--qos", "best", *sweep)
    assert outcome.err == "error: sbatch: Invalid qos specification\n"
    assert not list((tmp_path / "here").iterdir())


def test_a_full_disk_is_an_error_of_one_line_and_leaves_nothing(
    on_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(source: Path, target: Path, **_: object) -> None:
        target.mkdir()
        raise shutil.Error([(str(source), str(target), f"[Errno 28] No space left on device: '{target}'")])

    monkeypatch.setattr(shutil, "copytree", full)
    outcome = on_cluster()
    assert outcome.code == 2
    assert re.fullmatch(
        r"error: \S+/code: cannot be written: the disk is full; free some space\n", outcome.err
    )
    assert not list((tmp_path / "here").iterdir())


def test_a_disk_that_is_full_from_the_start_leaves_no_empty_record(
    on_cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("launch.slurm.runs.job_record._text", lambda record: "x" * 10**7)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        outcome = on_cluster()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert "slurm.json: cannot be written" in outcome.err
    assert not list((tmp_path / "here").iterdir())


def test_what_was_there_before_stays_where_sbatch_refuses(on_cluster, tmp_path: Path):
    run = tmp_path / "here" / "mine"
    run.mkdir()
    (run / "notes.txt").write_text("keep me")
    assert on_cluster(f"run_dir={run}").code == 2
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_a_folder_that_cannot_be_made_is_an_error_of_one_line(on_cluster):
    outcome = on_cluster("--runs", "/proc/x")
    assert outcome.code == 2
    assert re.fullmatch(r"error: run directory /proc/x/\S+: cannot be created: .*\n", outcome.err)


def test_a_job_is_rehearsed_before_it_is_submitted(
    on_cluster, translution, config_file, recorded: RecordedSlurm
):
    recorded.says("sbatch", "Submitted batch job 77\n")
    assert "\nrehearsal: rank 0 of data 1" in translution("submit", config_file, "--mem-gb", "4").out


def test_a_job_is_submitted_and_its_links_are_cleared(on_cluster, recorded: RecordedSlurm, tmp_path: Path):
    recorded.says("sbatch", "Submitted batch job 77\n")
    out = on_cluster("--sweep", "seed=1,2", "--mem-gb", "4").out
    assert out.startswith("memory: ")
    assert "of a process" in out
    assert "job 77_1  run directory runs/tiny-seed=2-" in out
    assert not list((tmp_path / "here").rglob(".submission_file*"))
    (sweep,) = (tmp_path / "here" / "runs").glob("tiny-sweep-*")
    assert f"translution sweep {sweep}" in out
    assert "already submitted as job 77_0" in on_cluster("seed=1", "--mem-gb", "4").err
