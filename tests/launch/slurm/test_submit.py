"""Before submitting: the batch script, the memory check, the time a save takes, the copy of the code."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launch.slurm.code_snapshot import snapshot
from launch.slurm.preflight import save_warning
from parallel.code_folder import CODE_FOLDER

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
    digits = Path(__file__).parent / "fixtures"
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
