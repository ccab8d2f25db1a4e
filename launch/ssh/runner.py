"""Waits for DeepSpeed's runner, and stops the ranks on all hosts at Ctrl-C."""

import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

from launch.ssh.hostfile import ANSWER_SECONDS, remote_python, ssh
from parallel.errors import UserError


def wait(runner: subprocess.Popen[bytes], hosts: list[str], token: str) -> int:
    """Wait for DeepSpeed's runner; returns its exit code, or 128 + the number of a signal that stopped it.

    At the first Ctrl-C or SIGTERM the ranks on all hosts are asked to save and stop, at a second one the
    runner ends them at once.
    """
    stopping: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.append(number)
        if len(stopping) == 1:
            print("stopping: the ranks finish their step and save; again to end them at once", flush=True)
            threading.Thread(target=_ask_to_stop, args=(hosts, token, runner), daemon=True).start()
        else:
            runner.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = runner.wait()
    finally:
        for number, old in before.items():
            signal.signal(number, old)
    return 128 + stopping[0] if code and stopping else code


def _ask_to_stop(hosts: list[str], token: str, runner: subprocess.Popen[bytes]) -> None:
    """Ask the ranks on all hosts to stop; ends the runner where a host has none yet, or does not answer."""

    def ask(host: str) -> int:
        return int(ssh(host, remote_python("launch.ssh.stop_trainers", token), ANSWER_SECONDS).split()[-1])

    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            asked = list(pool.map(ask, hosts))
    except (UserError, ValueError, IndexError) as error:
        print(f"warning: {error}; ending the ranks without saving", flush=True)
        asked = [0]
    if 0 in asked:
        runner.send_signal(signal.SIGTERM)
