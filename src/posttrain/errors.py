"""The one exception for mistakes of a user; the command line prints it without a traceback and exits with 2."""


class UserError(ValueError):
    """Something the user gave is wrong. The message says what, where, and the way out."""
