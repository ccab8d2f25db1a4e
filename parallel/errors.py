"""The one kind of error that is shown to a person as a line instead of a traceback."""


class UserError(ValueError):
    """A mistake in a config, a file or the machine; the message says what would be right."""
