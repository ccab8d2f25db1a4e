"""The kinds of error that are shown to a person as a line instead of a traceback."""


class UserError(ValueError):
    """A mistake in a config, a file or the machine; the message says what would be right."""


class RankFailure(Exception):
    """This process cannot go on: it lost another one of its run, or ran out of memory.

    `speaks`: whether this rank is the one that tells the person.
    """

    def __init__(self, message: str, speaks: bool = True) -> None:
        super().__init__(message)
        self.speaks = speaks
