"""Errors that the user sees as one line instead of a traceback."""


class UserError(ValueError):
    """A mistake in a config, a file or the machine; the message says what would be right."""


class RankFailure(Exception):
    """This rank cannot continue: it lost another rank of its run, or ran out of memory.

    `reports`: whether this rank is the one that prints the message.
    """

    def __init__(self, message: str, reports: bool = True) -> None:
        super().__init__(message)
        self.reports = reports
