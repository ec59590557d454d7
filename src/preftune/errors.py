"""The errors that are the user's to fix."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the key, the value, the rule and the fix. The command line prints it without a
    traceback and exits with code 2.
    """


class NothingLeftError(InputError):
    """No row is left, or none that can be used."""
