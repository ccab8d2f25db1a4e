"""Resources to request: durations, files of defaults, one-line errors."""

from pathlib import Path

import pytest

from launch.slurm.allocation import minutes, read_allocation
from parallel.errors import UserError

CLUSTERS = sorted((Path(__file__).parents[3] / "configs" / "cluster").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        (90, 90),
        ("1:30", 2),
        ("12:00:00", 720),
        ("2-00:00:00", 2880),
        ("1-12", 2160),
        ("1-0:5", 1445),
    ],
)
def test_durations_use_slurms_notation(text: str, expected: int):
    assert minutes(text) == expected


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.stem)
def test_the_cluster_files_in_configs_are_valid(path: Path):
    assert read_allocation(path, {}).processes_per_node > 1


def test_options_replace_values_of_the_file(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text(
        "gpus_per_node: 8\ntime: 24:00:00\npartition: gpu\naccount: null\nsetup: [module load x]\n"
    )
    file_only = read_allocation(path, {})
    assert (file_only.time, file_only.processes, file_only.account) == (1440, 8, None)
    assert file_only.setup == ["module load x"]
    mixed = read_allocation(path, {"nodes": 2, "tasks_per_node": 4, "partition": "cpu"})
    assert (mixed.processes, mixed.gpus_per_node, mixed.partition) == (8, None, "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodes": 0}, "nodes=0: should be greater than or equal to 1"),
        ({"time": "soon"}, "time=soon: expected minutes or"),
        ({"time": "2"}, "time=2 min is too short: "),
        ({"gpus_per_node": 2, "tasks_per_node": 3}, "gpus_per_node=2 and tasks_per_node=3: give only one"),
        ({"partition": "a\nb"}, "partition=a"),
    ],
)
def test_an_error_is_one_line_with_the_key_and_the_value(options: dict, message: str):
    with pytest.raises(UserError) as error:
        read_allocation(None, options)
    assert str(error.value).startswith(message)


def test_an_unknown_key_in_a_file_is_named(tmp_path: Path):
    path = tmp_path / "ours.yaml"
    path.write_text("gpu: 8\n")
    with pytest.raises(UserError, match="unknown key gpu; valid: nodes, gpus_per_node"):
        read_allocation(path, {})
    with pytest.raises(UserError, match="cannot be read"):
        read_allocation(tmp_path / "none.yaml", {})
