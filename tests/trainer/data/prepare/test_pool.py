"""Worker processes of `translution prepare`: order, laziness, and a process that dies."""

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from parallel.errors import UserError
from trainer.data.prepare.pool import map_in_processes


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


def die(number: int) -> int:
    os._exit(1)


def refuse(number: int) -> int:
    raise UserError(f"{number}: refused")


@pytest.mark.parametrize(("workers", "in_flight"), [(0, 1), (2, 6)])
def test_results_come_in_order_and_items_are_taken_as_they_are_needed(workers: int, in_flight: int):
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    processes = set()
    for number, (result, process) in enumerate(map_in_processes(square, items(), workers)):
        assert result == number**2
        assert taken <= number + in_flight
        processes.add(process)
    assert number == 19
    assert (os.getpid() in processes) == (workers == 0)


def test_a_process_that_dies_is_a_one_line_error():
    with pytest.raises(UserError, match=r"one of 1 worker processes died, .* fewer --workers to resume$"):
        list(map_in_processes(die, range(3), 1))


def test_an_error_in_a_process_is_raised_and_closing_early_ends_the_processes():
    with pytest.raises(UserError, match=r"^0: refused$"):
        list(map_in_processes(refuse, range(9), 1))
    with closing(map_in_processes(square, range(9), 1)) as results:
        _, process = next(results)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
