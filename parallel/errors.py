"""Errors that the user sees as one line instead of a traceback."""


class UserError(ValueError):
    """A mistake in a config, a file or the machine; the message says what would be right."""


class RankFailure(Exception):
    """This rank cannot continue: it lost another rank of its run, ran out of memory, or has other weights.

    reports   whether this rank is the one that prints the message
    fault     what it is called in the run's list of faults
    """

    def __init__(self, message: str, reports: bool = True, *, fault: str) -> None:
        super().__init__(message)
        self.reports = reports
        self.fault = fault
