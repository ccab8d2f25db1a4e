"""What Slurm says of nodes, and whether a job fits into them."""

import pytest

from launch.slurm.allocation import read_allocation
from launch.slurm.nodes import gpu_gb, partition_nodes, process_memory
from launch.slurm.preflight import MemoryNeed
from tests.launch.slurm.recorded import RecordedSlurm

# Recorded: `sinfo --noheader -e --format=%P|%m|%c|%G|%f`.
SINFO = """\
cpu*|6000|8|(null)|pair
cpu*|12000+|16|(null)|(null)
"""
GPUS = """\
gpu|1031000|128|gpu:h100:8(S:0-1)|ib
gpu|1031000|128|gpu:a100_80gb:4(S:0-1)|ib,old
"""


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("a100", 40),
        ("nvidia_a100-sxm4-80gb", 80),
        ("A100_40GB", 40),
        ("h100", 80),
        ("nvidia_h100_80gb_hbm3", 80),
        ("H200", 141),
        ("nvidia_b200", 180),
        ("tesla_v100-sxm2-32gb", 32),
        ("v100", 16),
        ("nvidia_l40s", 48),
        ("rtx_a6000", 48),
        ("quadro_rtx_6000", 24),
        ("nvidia_rtx_6000_ada_generation", 48),
        ("nvidia_geforce_rtx_2080_ti", 11),
        ("nvidia_gh200_480gb", 96),  # the host has 480 GB
        ("nvidia_a100_3g.20gb", 20),
        ("1g.10gb+me", 10),
        ("mi250x", 64),
    ],
)
def test_a_gres_type_names_the_memory_of_the_card(kind: str, size: float):
    assert gpu_gb(kind) == size


@pytest.mark.parametrize("kind", ["", "gpu", "tesla", "big"])
def test_a_type_that_names_no_card_is_not_guessed(kind: str):
    assert gpu_gb(kind) is None


def test_a_node_may_have_cards_of_several_types(recorded: RecordedSlurm):
    """Then the smallest decides whether a job fits everywhere."""
    recorded.says("sinfo", "gpu*|64000|8|gpu:a100_3g.20gb:2(S:0),gpu:1g.5gb+me:4(S:0),gpu:big:1|(null)\n")
    nodes = partition_nodes(None)
    assert [(node.gpu_type, node.gpus) for node in nodes] == [
        ("a100_3g.20gb", 2),
        ("1g.5gb+me", 4),
        ("big", 1),
    ]
    allocation = read_allocation(None, {"gpus_per_node": 1})
    memory = process_memory(allocation, nodes[:2])
    assert memory
    assert (memory.most_gb, memory.least_gb) == (20, 5)
    assert process_memory(allocation, nodes) is None, "one type says nothing"


@pytest.mark.parametrize(
    ("options", "output", "most", "least"),
    [
        ({}, SINFO, 12.58, 6.29),
        ({"tasks_per_node": 4}, SINFO, 3.15, 1.57),
        ({"constraint": "pair"}, SINFO, 6.29, 6.29),
        ({"mem_gb": 4, "tasks_per_node": 2}, SINFO, 2, 2),
        ({"gpus_per_node": 4, "partition": "gpu"}, GPUS, 80, 80),
        ({"gpus_per_node": 4, "partition": "gpu", "device_memory_gb": 24}, GPUS, 24, 24),
    ],
)
def test_a_process_has_what_is_asked_for_else_what_slurm_says(
    recorded: RecordedSlurm, options: dict, output: str, most: float, least: float
):
    recorded.says("sinfo", output)
    allocation = read_allocation(None, options)
    memory = process_memory(allocation, partition_nodes(allocation.partition, allocation.constraint))
    assert memory
    assert (memory.most_gb, memory.least_gb) == (
        pytest.approx(most, abs=0.01),
        pytest.approx(least, abs=0.01),
    )


def test_unknown_memory_is_never_silent(recorded: RecordedSlurm):
    recorded.says("sinfo", "gpu*|64000|8|gpu:2|(null)\n")
    allocation = read_allocation(None, {"gpus_per_node": 2})
    assert process_memory(allocation, partition_nodes(None)) is None
    small, large = (MemoryNeed("a plan", peak, 1, complete=True) for peak in (1e9, 20e9))
    assert "not compared" in small.verdict(None).line
    assert not small.verdict(None).ask
    assert large.verdict(None).ask


def test_too_little_memory_is_refused_and_some_nodes_too_small_is_asked(recorded: RecordedSlurm):
    recorded.says("sinfo", SINFO)
    memory = process_memory(read_allocation(None, {}), partition_nodes(None))
    verdicts = [MemoryNeed("a plan", peak, 1, complete=True).verdict(memory) for peak in (1e9, 9e9, 1.09e12)]
    assert [verdict.fits for verdict in verdicts] == [True, None, False]
    assert verdicts[1].ask
    assert "does not fit into the 12.6 GB of a process (what Slurm says of the nodes)" in verdicts[2].line
