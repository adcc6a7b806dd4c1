"""What an error says, in one line, wherever in a verl run it arose."""

from __future__ import annotations

from ray.exceptions import RayTaskError

from vtriune.types import UserError

LONGEST = 500
"""Characters of a reason: Ray's own errors are pages long."""


def cause_of(error: BaseException) -> BaseException:
    """The error that Ray carried here, maybe through several processes."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, BaseException) and error.cause is not error:
        error = error.cause
    return error


def reason_of(error: BaseException) -> str:
    """A user's error as it is; another one with its kind, as far as it is short."""
    cause = cause_of(error)
    if isinstance(cause, UserError):
        return str(cause)
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text if len(text) <= LONGEST else text[:LONGEST] + ' ...'}"
