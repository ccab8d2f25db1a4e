"""`python -m tests.slurm.command_server SOCKET`: runs `translution` commands, each in a fork of this process.

A request is a line of JSON: the arguments and the working directory. The answer is the command's output
and errors, a zero byte and its exit code.
"""

import json
import os
import socketserver
import sys
import traceback

import launch.slurm.submit  # noqa: F401  takes seconds, so it is imported once
from launch.cli import main


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    request_queue_size = 100


class _Command(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        request = json.loads(self.rfile.readline())
        os.chdir(request["folder"])
        sys.argv = ["translution", *request["arguments"]]
        for stream in (1, 2):
            os.dup2(self.connection.fileno(), stream)
        code: object = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        self.wfile.write(f"\0{code}".encode())


if __name__ == "__main__":
    with _Server(sys.argv[1], _Command) as server:
        server.serve_forever()
