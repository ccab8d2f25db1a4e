"""Waits for DeepSpeed's runner, and passes signals on to the ranks on all hosts."""

import os
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType

from launch.ssh.hostfile import ANSWER_SECONDS, remote_python, ssh
from parallel.errors import UserError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Those at which ranks save and stop, and the one of a terminal that is closed."""


def wait(runner: subprocess.Popen[bytes], hosts: list[str], token: str) -> int:
    """Wait for DeepSpeed's runner; returns its exit code, or 128 + the number of a signal that stopped it.

    At the first of _SIGNALS the ranks on all hosts are asked to save and stop; at another Ctrl-C or SIGTERM
    the runner ends them at once. One that was ignored before, as SIGHUP under nohup, stays so.
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)
        if len(stopping) == 1:
            with suppress(OSError):  # print() could fail inside a handler, and the terminal may be gone
                os.write(1, b"stopping: the ranks finish their step and save; again to end them at once\n")
            threading.Thread(target=_ask_to_stop, args=(hosts, token, runner, number), daemon=True).start()
        elif number in (signal.SIGINT, signal.SIGTERM):
            runner.send_signal(signal.SIGTERM)

    before = {
        number: signal.signal(number, stop)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        code = runner.wait()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    return 128 + stopping[0] if code and stopping else code


def _ask_to_stop(hosts: list[str], token: str, runner: subprocess.Popen[bytes], number: int) -> None:
    """Ask the ranks on all hosts to stop; ends the runner where a host has none yet, or does not answer."""
    command = remote_python("launch.ssh.stop_trainers", token, str(int(number)))

    def ask(host: str) -> int:
        return int(ssh(host, command, ANSWER_SECONDS).split()[-1])

    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            asked = list(pool.map(ask, hosts))
    except (UserError, ValueError, IndexError) as error:
        with suppress(OSError):
            print(f"warning: {error}; ending the ranks without saving", flush=True)
        asked = [0]
    if 0 in asked:
        runner.send_signal(signal.SIGTERM)
