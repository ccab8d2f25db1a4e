"""The `compare` section: what the nets of a comparison have in common."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class BudgetConfig(BaseModel):
    """How long every net trains; exactly one is given.

    steps, samples  optimizer steps, or training samples
    flops           of training, without recomputation
    seconds         of optimizer steps, as a few of them take on this machine
    """

    model_config = ConfigDict(extra="forbid")

    steps: int | None = Field(None, ge=1)
    samples: int | None = Field(None, ge=1)
    flops: float | None = Field(None, gt=0)
    seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"one of {', '.join(type(self).model_fields)} is needed, not {given or 'none'}")
        return self


class CompareConfig(BaseModel):
    """How `translution compare` makes the nets of a study equal.

    match      quantity that agrees within 2 %: parameters, training FLOPs of a sample, or the measured time
               of a step; null: nets are trained as they are written
    scale      what is changed for it: the width, with heads and feed-forward in proportion, or the depth; the
               feed-forward makes up the rest
    reference  net whose quantity the others match; null: the first
    keep       nets that are trained as they are written
    budget     null: train.steps
    """

    model_config = ConfigDict(extra="forbid")

    match: Literal["params", "flops", "time"] | None = None
    scale: Literal["width", "depth"] = "width"
    reference: str | None = None
    keep: list[str] = []
    budget: BudgetConfig | None = None
