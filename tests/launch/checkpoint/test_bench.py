"""`translution bench checkpoint` measures what its table says, and leaves nothing behind."""

import json
from collections.abc import Callable
from pathlib import Path


def test_savings_loads_and_bytes_of_a_small_net(tmp_path: Path, translution: Callable):
    words = ("bench", "checkpoint", "--folder", tmp_path, "--width", 128, "--repeat", 1)
    done = translution(*words, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out)
    assert result["bytes"] > 12 * 3 * 13 * 13 * 128 * 128  # banks of q, k and v with their moments
    assert result["read_over_share"] < 1.1
    assert set(result["ratios"]) == {"write", "read", "stall"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_one_line(tmp_path: Path, translution: Callable):
    refused = translution("bench", "checkpoint", "--folder", tmp_path / "none")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--folder" in refused.err
