"""The address and port where the ranks of a job meet.

`python -m launch.rendezvous PORT` on the first host prints its address, if the port is free. That must
answer quickly on any host, so nothing heavy is imported at the top.
"""

import fcntl
import os
import re
import socket
import struct
import subprocess
import sys

from parallel.errors import UserError

_OUTSIDE = "198.51.100.1"  # an address of no host, to find the way out of this one


def slurm_rendezvous() -> dict[str, str]:
    """The environment variables of torch.distributed for this Slurm task, from those that srun sets, and
    on several nodes the network interface for gloo and NCCL.

    Raises UserError outside a Slurm task.
    """
    try:
        job, nodes = int(os.environ["SLURM_JOB_ID"]), os.environ["SLURM_JOB_NODELIST"]
        tasks = os.environ["SLURM_NTASKS"]
        ranks = {
            "RANK": os.environ["SLURM_PROCID"],
            "WORLD_SIZE": tasks,
            "LOCAL_RANK": os.environ["SLURM_LOCALID"],
            "LOCAL_WORLD_SIZE": str(int(tasks) // int(os.environ["SLURM_JOB_NUM_NODES"])),
        }
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set: this process was not started by srun") from None
    # Each restart takes another port: the old one may still be in use.
    port = 20000 + (job + 101 * int(os.environ.get("SLURM_RESTART_COUNT") or 0)) % 12000
    address = node_address(_first_node(nodes))
    meeting = {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    several = int(os.environ["SLURM_JOB_NUM_NODES"]) > 1
    return meeting | ranks | (socket_interfaces(address) if several else {})


def socket_interfaces(peer: str) -> dict[str, str]:
    """The variables that make gloo and NCCL use the interface that leads to `peer`, where they are not set.

    By themselves they resolve this host's name, which may give 127.0.1.1, or take a bridge of its own.
    """
    interface = interface_to(peer) or interface_to(_OUTSIDE)
    names = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name not in os.environ]
    return dict.fromkeys(names, interface) if interface else {}


def _first_node(nodes: str) -> str:
    from submitit.slurm.slurm import SlurmJobEnvironment, SlurmParseException

    try:
        # Not JobEnvironment(): that needs submitit's own variables, which plain srun does not set.
        # It reads SLURM_JOB_NODELIST; without one it would name every host itself.
        if nodes:
            return SlurmJobEnvironment().hostnames[0]
    except SlurmParseException:
        pass
    raise UserError(f"SLURM_JOB_NODELIST={nodes}: expected a list of nodes as in a[1-2],b")


def node_address(node: str) -> str:
    """`node` if its name resolves, else the address that Slurm has for it.

    A name that resolves to a loopback address, as Debian gives a host its own, is of use on that host only.
    """
    try:
        here = node.split(".")[0] in (socket.gethostname().split(".")[0], "localhost")
        if not socket.gethostbyname(node).startswith("127.") or here:
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
    """Raise UserError if `port` of this host, whose address is `address`, is in use."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError as error:
            raise UserError(
                f"{address}:{port}: the ranks cannot meet there: {error.strerror}; "
                "stop the process that uses the port"
            ) from None


def own_address() -> str:
    """This host's address as other hosts see it: what its name resolves to, unless that is a loopback."""
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = "127."
    if not address.startswith("127."):
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        try:
            outward.connect((_OUTSIDE, 9))  # sends nothing: asks which interface leads outside
            return outward.getsockname()[0]
        except OSError:
            return "127.0.0.1"


def interface_to(peer: str) -> str | None:
    """The network interface that leads to `peer`; None if that is this host, or if unknown."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
            outward.connect((peer, 9))  # sends nothing
            own = outward.getsockname()[0]
        for _, name in socket.if_nameindex():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as each:
                try:
                    packed = fcntl.ioctl(each, 0x8915, struct.pack("256s", name[:15].encode()))  # SIOCGIFADDR
                except OSError:
                    continue
            if socket.inet_ntoa(packed[20:24]) == own and name != "lo":
                return name
    except OSError:
        pass
    return None


if __name__ == "__main__":
    try:
        check_port(socket.gethostname(), int(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    print(own_address())
