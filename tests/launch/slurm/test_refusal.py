"""Which option sbatch refused."""

from launch.slurm.refusal import refused_options
from tests.launch.slurm.recorded import RecordedSlurm


def refuses(slurm: RecordedSlurm, option: str) -> None:
    """An `sbatch` that refuses every job with this option."""
    slurm.says("sbatch", "")
    script = slurm.folder / "sbatch"
    script.write_text(f'#!/bin/sh\ncase " $* " in *" {option} "*) exit 1;; esac\n')


def test_the_option_without_which_sbatch_takes_the_job_is_named_as_the_user_wrote_it(recorded: RecordedSlurm):
    given = {"mem": "9216000MB", "constraint": "pair", "time": 60, "nodes": 1, "cpus_per_task": 2}
    passed = {
        "additional_parameters": {"requeue": True, "chdir": "/", "reservation": "night", "exclusive": True}
    }
    for option, named in (
        ("--mem=9216000MB", "--mem-gb 9000: "),
        ("--constraint=pair", "--constraint pair: "),
        ("--time=60", "--time 60: "),
        ("--reservation=night", "--sbatch reservation=night: "),
        ("--exclusive", "--sbatch exclusive: "),
        ("--wrap=true", ""),
    ):
        refuses(recorded, option)
        assert refused_options(given | passed) == named
