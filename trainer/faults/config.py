"""Settings of what a run does when something fails."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FaultsConfig(BaseModel):
    """Part of the config's `train` section."""

    model_config = ConfigDict(extra="forbid")

    max_skips: int = Field(
        5, ge=1, description="steps in a row without a finite loss and gradient, then back to the checkpoint"
    )
    watchdog: float | None = Field(
        300.0, gt=0, allow_inf_nan=False, description="seconds without progress that end the job"
    )
    check_every: int | None = Field(
        100, ge=1, description="steps between comparisons of the replicas; null: never"
    )
    on_save_error: Literal["stop", "warn"] = Field(
        "stop", description="a checkpoint that cannot be written: stop the run, or warn and go on"
    )
