"""Leaving the other processes after a failure."""

import os
import signal
import subprocess
import sys

from parallel.spawn import describe_rank, free_port

_ABANDONS = """
import time
import torch
import torch.distributed as dist
from parallel import processes
processes._LEAVE_SECONDS = 1
processes.join_processes(torch.device("cpu"))
dist.distributed_c10d._abort_process_group = lambda group=None: time.sleep(100)  # waits for a dead peer
processes.abandon_processes()
"""


def test_a_rank_that_abandons_the_others_ends_even_if_its_library_waits_for_them():
    port = free_port()
    ranks = [
        subprocess.Popen([sys.executable, "-c", _ABANDONS], env=os.environ | describe_rank(number, 2, port))
        for number in (0, 1)
    ]
    assert [process.wait(timeout=60) for process in ranks] == [-signal.SIGALRM] * 2
