"""How a global batch divides into micro-batches."""

from parallel.errors import UserError


def micro_batch_size(batch: int, accumulate: int, data: int) -> int:
    """Samples of one micro-batch on one of `data` replicas, with `accumulate` micro-batches in a step.

    Raises UserError unless the global batch divides evenly.
    """
    if batch % (accumulate * data):
        raise UserError(
            f"train.batch={batch} is not divisible by train.accumulate={accumulate} × {data} data ranks"
        )
    return batch // (accumulate * data)
