"""`python -m trainer CONFIG [key=value…]`: the process that every launcher starts."""

import argparse
import os
import sys
from pathlib import Path

from trainer.errors import exit_code


def main(arguments: list[str] | None = None) -> int:
    """Train as the arguments say; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m trainer", description="Train from a config.")
    parser.add_argument("config", nargs="?", help="YAML file; may be left out with --resume")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that differ")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="go on with this run")
    parser.add_argument(
        "--requeued", action="store_true", help="go on with run_dir if it holds a checkpoint, else begin it"
    )
    parser.add_argument("--debug", action="store_true", help="anomaly detection, tracebacks of all errors")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(arguments)
    if not given.debug:  # torch's own pages about a lost rank; read when torch is imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    def action() -> None:
        from trainer.setup import split_words, train  # after the parser, for torch takes seconds

        if given.debug:
            import torch

            torch.autograd.set_detect_anomaly(True)
        train(*split_words(given.config, given.overrides), given.resume, given.requeued)

    return exit_code(action, given.debug)


if __name__ == "__main__":
    sys.exit(main())
