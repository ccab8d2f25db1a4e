"""What `translution submit` learns from a rehearsal before a job waits in the queue."""

from __future__ import annotations

from launch.rehearse.run import rehearse_config
from launch.slurm.allocation import Allocation
from parallel.errors import UserError
from parallel.planner.recommend import Cluster
from parallel.rehearsal.recorder import CannotRehearse
from trainer.config.run import RunConfig

SECONDS = 60  # a longer rehearsal is given up, and the job submitted


def rehearse_before_submit(
    config: RunConfig, allocation: Allocation, memory: float | None, force: bool
) -> str:
    """Rehearses the fullest rank of a job with `memory` bytes a process (None: not known); returns
    the line to print.

    Raises UserError with what is wrong with the job; with `force` a job that does not fit is only told.
    """
    on_cpu = allocation.gpus_per_node is None
    cluster = Cluster(allocation.nodes, allocation.processes_per_node, memory or float("inf"))
    config = config.model_copy(update={"device": "cpu"}) if on_cpu else config
    try:
        found = rehearse_config(config, cluster, True, "fullest", SECONDS)
    except CannotRehearse as error:
        return f"rehearsal: none: {error}"
    problem = found.problem()
    if problem and (found.fits or not force):
        raise UserError(f"rehearsal: {problem}; --no-rehearsal submits the job all the same")
    return f"rehearsal: {problem}" if problem else found.summary()
