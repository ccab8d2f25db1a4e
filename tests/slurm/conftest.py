"""One simulated Slurm cluster for all tests of this folder, on machines that can run it."""

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.slurm.cluster import Cluster, missing_requirement
from tests.slurm.workspace import CONCURRENT, LONG, Losses, Workspace, losses
from tests.tiny import TINY


@pytest.fixture(scope="session")
def running_cluster() -> Iterator[Cluster]:
    if reason := missing_requirement():
        pytest.skip(reason)
    # Not in pytest's own directories: munge needs a path that every user may enter.
    with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(Path(folder)).start()
        yield cluster
        cluster.stop()


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, without jobs and with all nodes idle again after the test."""
    yield running_cluster
    running_cluster.reset()


@pytest.fixture(scope="session")
def tiny() -> dict:
    data = {"kind": "synthetic", "test_samples": 20}  # unpacking the digits takes each process half a second
    train = {"lr": 1e-3, "log_every": 1, "checkpoint_every": None}
    return TINY | {"data": data, "train": TINY["train"] | train}


@pytest.fixture(scope="session")
def train_locally(tiny: dict, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Losses]:
    """Trains the tiny config in this process, without interruption; returns its losses."""
    from trainer.__main__ import main

    def train(*overrides: str) -> Losses:
        work = tmp_path_factory.mktemp("local")
        (work / "tiny.yaml").write_text(yaml.safe_dump(tiny))
        assert main([str(work / "tiny.yaml"), *overrides, f"run_dir={work / 'run'}"]) == 0
        return losses(work / "run")

    return train


@pytest.fixture(scope="session")
def tiny_losses(train_locally: Callable[..., Losses]) -> Losses:
    return train_locally()


@pytest.fixture(scope="session")
def long_losses(train_locally: Callable[..., Losses]) -> Losses:
    return train_locally(*LONG)


@pytest.fixture
def workspace(
    cluster: Cluster, tmp_path: Path, tiny: dict, tiny_losses: Losses, long_losses: Losses
) -> Workspace:
    return Workspace(cluster, tmp_path, tiny, tiny_losses, long_losses)


@pytest.fixture(scope="session")
def concurrent_results(
    request: pytest.FixtureRequest,
    running_cluster: Cluster,
    tiny: dict,
    tiny_losses: Losses,
    long_losses: Losses,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[Callable, Future]:
    """Runs all selected tests that are marked @concurrent; returns the result of each."""
    selected = [item.function for item in request.session.items if isinstance(item, pytest.Function)]
    bodies = [CONCURRENT[function] for function in selected if function in CONCURRENT]
    with ThreadPoolExecutor(8) as pool:  # more would only slow each other down
        results = {}
        for body in bodies:
            work = tmp_path_factory.mktemp("workspace")
            workspace = Workspace(running_cluster, work, tiny, tiny_losses, long_losses)
            results[body] = pool.submit(body, workspace)
    running_cluster.reset()
    return results
