"""The errors that are the user's to fix."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message names the key, the value, the rule and the fix. The command line prints it without a
    traceback and exits with code 2.
    """


class NothingLeftError(InputError):
    """No row is left, or none that can be used."""


class NotFiniteError(RuntimeError):
    """Training met losses, gradients or weights that are NaN or infinite, and has ended.

    What was finite before is kept; the message says what, and what to change. The command line prints it
    without a traceback and exits with code 1.
    """
