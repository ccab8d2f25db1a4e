"""`translution runs`: what it says of each run, which it shows, and in which order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.runs.find import find_runs, read_run
from launch.runs.listing import list_runs
from tests.launch.runs.written import write_run, write_study
from trainer.run_directory.starts import this_start

ATTENTION = {"model": {"kind": "vit", "mixer": {"kind": "attention", "heads": 2}}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "good", (50.0, 90.0, 80.0), tags=["first", "paper"], note="by hand")
    write_run(root / "deep" / "plain", (60.0,), rate=4.0, deterministic=True, **ATTENTION)
    write_run(root / "cut", steps_done=3, finished=False)
    write_run(root / "alive", steps_done=4, finished=False, start=this_start(2, 1234))
    write_study(root / "study", {"seed=0": {"accuracies": (70.0,)}, "seed=1": {"accuracies": (75.0,)}})
    (root / "good" / "checkpoints" / "old").mkdir(parents=True)
    (root / "good" / "checkpoints" / "old" / "config.yaml").write_text("{}")  # no run of its own
    (root / ".removed").mkdir()
    (root / ".removed" / "config.yaml").write_text("{}")
    return root


def names(folder: Path, filters: list[str] | None = None, sort: str = "name") -> list[str]:
    return [run.path.name for run in list_runs(folder, filters or [], sort)]


def test_runs_and_the_nets_of_studies_are_found_once(folder: Path):
    assert names(folder) == ["alive", "cut", "good", "plain", "seed=0", "seed=1"]
    assert [run.unit.name for run in find_runs(folder / "study")] == ["study", "study"]
    assert names(folder / "good") == ["good"]


def test_a_run_is_what_its_files_say(folder: Path):
    good = read_run(folder / "good")
    assert (good.state, good.step, good.steps, good.parameters) == ("finished", 6, 6, 1234)
    assert good.loss == pytest.approx(2.4)
    assert good.headline is not None
    assert (good.headline.metric, good.headline.value) == ("accuracy", 90.0)  # not the last one
    assert good.best["static", "loss"].value == 10.0
    assert good.device_hours * 3600 == pytest.approx(6 * 1 * 2)  # six steps of a second on two devices
    assert good.started == 1_700_000_000.0
    assert (good.tags, good.note) == (("first", "paper"), "by hand")


def test_states_tell_a_live_process_from_one_that_is_gone(folder: Path, tmp_path: Path):
    assert read_run(folder / "alive").state == "running"
    assert read_run(folder / "cut").state == "stopped"  # its process id is ours, born at another time
    elsewhere = this_start(2, 1234) | {"host": "elsewhere"}
    for age, state in [(5, "running"), (10_000, "stopped")]:
        run = write_run(tmp_path / str(age), finished=False, start=elsewhere, age=age)
        assert read_run(run).state == state
    (tmp_path / "5" / "starts.jsonl").unlink()
    (tmp_path / "5" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"st')
    without = read_run(tmp_path / "5")  # of an older version; its last line is being written
    assert (without.state, without.step, without.loss) == ("running", 1, 2.0)
    (tmp_path / "5" / "metrics.jsonl").unlink()
    assert read_run(tmp_path / "5").state == "new"


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("accuracy", ["good", "seed=1", "seed=0", "plain"]),
        ("best", ["good", "seed=1", "seed=0", "plain"]),
        ("loss", ["plain", "good", "seed=0", "seed=1", "alive", "cut"]),  # equal ones by path
        ("device-hours", ["cut", "alive"]),
        ("model.mixer.kind", ["plain"]),
        ("started", ["alive"]),
    ],
)
def test_the_best_come_first(folder: Path, sort: str, first: list[str]):
    assert names(folder, sort=sort)[: len(first)] == first


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        (["model.mixer.kind=attention"], ["plain"]),
        (["model.mixer.kind=*lution", "state=finished"], ["good", "seed=0", "seed=1"]),
        (["tag=paper"], ["good"]),
        (["name=seed*"], ["seed=0", "seed=1"]),
        (["train.lr=1e-2", "deterministic=true"], ["plain"]),
    ],
)
def test_filters_choose_by_config_state_name_and_tag(folder: Path, filters: list[str], kept: list[str]):
    assert names(folder, filters) == kept


def test_the_table_and_json_say_it(folder: Path, translution: Callable):
    done = translution("runs", folder, "--sort", "accuracy", "--filter", "state=finished")
    assert done.code == 0, done.err
    lines = done.out.strip().splitlines()
    assert lines[0] == f"4 runs in {folder}"
    assert lines[2].split()[:6] == ["good", "finished", "6/6", "2.4000", "accuracy", "90"]
    assert lines[3].split()[0] == "study/seed=1"
    listed = json.loads(translution("runs", "list", folder, "--json").out)
    assert {run["state"] for run in listed} == {"finished", "running", "stopped"}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["--sort", "lost"], "--sort lost: one of name, state, step"),
        (["--filter", "model.mixr.kind=a"], "no run has a config key model.mixr.kind"),
        (["--filter", "tag"], "--filter tag: expected KEY=VALUE"),
        (["--filter", "tag=none"], "none of 6 runs passes --filter tag=none"),
    ],
)
def test_a_mistake_is_one_line(folder: Path, words: list[str], says: str, translution: Callable):
    done = translution("runs", *([folder] if words[0].startswith("--") else []), *words)
    assert done.code == 2
    assert says in done.err
    assert done.err.count("\n") == 1


def test_submitted_runs_have_the_state_that_slurm_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from launch.slurm.runs.job_record import JobRecord, write_record
    from launch.slurm.runs.states import RunState
    from parallel.errors import UserError

    run = write_run(tmp_path / "job", finished=False)
    write_record(run, JobRecord("", {}, jobs=["7"]))

    class View:
        def look(self, runs: list[Path]) -> dict[Path, RunState]:
            assert runs == [run]
            return {run: RunState("PENDING")}

    class Silent:
        def look(self, runs: list[Path]) -> dict[Path, RunState]:
            raise UserError("squeue: not found")

    for view, state in [(View, "pending"), (Silent, "stopped")]:
        monkeypatch.setattr("launch.runs.listing.SlurmView", view)
        assert [each.state for each in list_runs(tmp_path, [], "name")] == [state]
