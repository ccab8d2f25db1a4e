"""`python -m launch.ssh.host_speed DIRECTORY TOKEN PEER`: describe this host, and measure its speed.

One process per host, started by ssh (RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set) or by srun.
"""

import json
import os
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from launch.rendezvous import slurm_rendezvous
from launch.ssh.host_report import describe_host
from parallel.errors import UserError

_MATRIX = {"cpu": 1024, "cuda": 8192}
_REDUCED_FLOATS = 4 * 2**20
_SENT_FLOATS = 2 * 2**20
_RENDEZVOUS_TIMEOUT = timedelta(seconds=40)


def matrix_speeds() -> list[float]:
    """FLOP/s of a large float32 matrix product on each device of this host, best of four."""
    devices = [torch.device("cuda", n) for n in range(torch.cuda.device_count())] or [torch.device("cpu")]
    return [_matrix_speed(device) for device in devices]


def measure_network(values: dict[str, Any]) -> None:
    """Add to `values` the seconds the ranks took to meet, bytes/s of an all-reduce, by NCCL where there is a
    card, and bytes/s of the link to rank 0, always by gloo.

    Raises UserError if the ranks do not meet.
    """
    start = time.perf_counter()
    device, library = torch.device("cpu"), "gloo"
    if torch.cuda.is_available():
        device, library = torch.device("cuda", 0), "NCCL"
        torch.cuda.set_device(device)
    try:
        backend = "cpu:gloo,cuda:nccl" if library == "NCCL" else "gloo"
        distributed.init_process_group(backend, timeout=_RENDEZVOUS_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(
            f"{socket.gethostname()}: cannot meet the other hosts at {where}: {str(error).splitlines()[0]}"
        ) from None
    values["rendezvous_seconds"] = time.perf_counter() - start
    numbers = torch.ones(_REDUCED_FLOATS, device=device)
    for _ in range(2):  # the first one connects
        start = time.perf_counter()
        distributed.all_reduce(numbers)
        numbers[0].item()  # waits for it
    values["all_reduce"] = 4 * _REDUCED_FLOATS / (time.perf_counter() - start)
    values["all_reduce_by"] = library
    rank, sent = distributed.get_rank(), torch.ones(_SENT_FLOATS)
    for other in range(1, distributed.get_world_size()):
        distributed.barrier()
        start = time.perf_counter()
        if rank == 0:
            distributed.send(sent, other)
            distributed.recv(sent, other)
        elif rank == other:
            distributed.recv(sent, 0)
            distributed.send(sent, 0)
            values["link"] = 8 * _SENT_FLOATS / (time.perf_counter() - start)
    distributed.destroy_process_group()


def _matrix_speed(device: torch.device) -> float:
    size = _MATRIX[device.type]
    one = torch.ones(size, size, device=device)
    best = 0.0
    for _ in range(4):  # the first one warms up
        start = time.perf_counter()
        float((one @ one)[0, 0])
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def main() -> None:
    """Print the report as one line of JSON."""
    if "SLURM_PROCID" in os.environ and "RANK" not in os.environ:
        os.environ |= slurm_rendezvous()
    values = describe_host(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            measure_network(values)
    except UserError as error:
        values["problem"] = str(error)
    values["matrix"] = matrix_speeds()
    values["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not torch.version.cuda and not torch.version.hip:
        values["gpus_hidden_by"] = "this torch is built for CPUs"
    print("report " + json.dumps(values), flush=True)


if __name__ == "__main__":
    main()
