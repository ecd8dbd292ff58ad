"""Errors that a person can mend: shown as one line at the command line; anything else is a bug and keeps its traceback.

A message says name, rule, value and the way out:
`data.source: no clips directory under /x; a Common Voice release has clips/ and train.tsv (got: a.txt, b.txt)`.
"""


class UserError(Exception):
    """The parent of them all; stages let it pass, and the command line prints it and exits with `status`."""

    status = 2


class ChoiceError(UserError, ValueError):
    """A setting, name or path that cannot be what was meant."""


class WorldError(UserError, RuntimeError):
    """Something outside that failed: a damaged file, a missing network, a full disk. Chain the cause with `from`."""

    status = 1


class RegressionError(UserError):
    """Fine-tuning cost more than was allowed; everything that was asked for is done and written."""

    status = 3
