"""Where the ranks of a Slurm job meet, from what Slurm tells each of its tasks.

Standard library only.
"""

import os
import re
import socket
import subprocess
from collections.abc import Mapping

from parallel.errors import UserError


def rendezvous(env: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of torch.distributed for this task; raises UserError outside a Slurm task."""
    try:
        job, nodes = int(env["SLURM_JOB_ID"]), env["SLURM_JOB_NODELIST"]
        ranks = {
            "RANK": env["SLURM_PROCID"],
            "WORLD_SIZE": env["SLURM_NTASKS"],
            "LOCAL_RANK": env["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(int(env["SLURM_NTASKS"]) // int(env["SLURM_JOB_NUM_NODES"])),
        }
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set: this process was not started by srun") from None
    # A restart takes another port, for its predecessor's may linger.
    port = 20000 + (job + 101 * int(env.get("SLURM_RESTART_COUNT") or 0)) % 12000
    place = {"MASTER_ADDR": node_address(first_node(nodes)), "MASTER_PORT": str(port)}
    return place | ranks


def first_node(nodes: str) -> str:
    """The first name of Slurm's list: a[003-5,9],b → a003."""
    match = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\](?P<rest>[^,]*))?", nodes)
    if not match:
        raise UserError(f"SLURM_JOB_NODELIST={nodes}: no list of nodes")
    return match[1] + (match[2] or "") + (match["rest"] or "")


def node_address(node: str) -> str:
    """`node` where its name resolves, else the address that Slurm has for it."""
    try:
        socket.gethostbyname(node)
        return node
    except OSError:
        pass
    command = ["scontrol", "-o", "show", "node", node]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        shown = ""
    address = re.search(r"NodeAddr=(\S+)", shown)
    if not address:
        raise UserError(f"{node}: the name does not resolve, and scontrol gives no address for it")
    return address[1]


def check_port(address: str, port: int) -> None:
    """On the first rank: raise UserError when its meeting port is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise UserError(
                f"{address}:{port}: the ranks cannot meet there: {error.strerror}; end what listens there"
            ) from None
