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
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--resume", type=Path, metavar="RUN_DIR", help="resume this run")
    parser.add_argument("--evaluate", type=Path, metavar="RUN_DIR", help="only evaluate this run")
    parser.add_argument(
        "--requeued", action="store_true", help="resume run_dir if it has a checkpoint, otherwise start over"
    )
    parser.add_argument("--bind", action="store_true", help="run on the cores next to the device only")
    parser.add_argument("--debug", action="store_true", help="anomaly detection, tracebacks of all errors")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    given = parser.parse_intermixed_args(arguments)
    if not given.debug:  # hides torch's long messages about a lost rank; read when torch is imported
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    def action() -> None:
        from trainer.config.arguments import split_arguments  # here, because torch takes seconds to import
        from trainer.train import train

        if given.debug:
            import torch

            torch.autograd.set_detect_anomaly(True)
        if given.evaluate:
            from trainer.evaluation import evaluate_run

            evaluate_run(given.evaluate, [*([given.config] if given.config else []), *given.overrides])
            return
        train(*split_arguments(given.config, given.overrides), given.resume, given.requeued, given.bind)

    return exit_code(action, given.debug)


if __name__ == "__main__":
    sys.exit(main())
