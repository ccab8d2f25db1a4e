"""`python -m launch.meeting PORT` on the first host: its address, if the ranks can meet at that port."""

import socket
import sys

from launch.rendezvous import check_port
from parallel.errors import UserError


def own_address() -> str:
    """The address by which other hosts reach this one: of its name, unless that is a loopback."""
    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError:
        address = "127."
    if not address.startswith("127."):
        return address
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))  # sends nothing: asks which interface leads outside
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


if __name__ == "__main__":
    try:
        check_port(socket.gethostname(), int(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    print(own_address())
