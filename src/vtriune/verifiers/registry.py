"""Which verifiers there are, by name, and their parameters checked. Importing it starts no heavy library."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from vtriune.types import UserError
from vtriune.verifiers.base import Verifier
from vtriune.verifiers.detection import Detection
from vtriune.verifiers.mathverify import MathVerify

_VERIFIERS: dict[str, Verifier[Any, Any]] = {verifier.name: verifier for verifier in (MathVerify(), Detection())}


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_VERIFIERS))


def get(name: str) -> Verifier[Any, Any]:
    """The verifier of that name.

    Raises:
        UserError: there is none; the message suggests the nearest name.

    >>> get("detection").name
    'detection'
    >>> get("detecton")
    Traceback (most recent call last):
    vtriune.types.UserError: verifier "detecton" is not registered; did you mean "detection"?
    """
    if name in _VERIFIERS:
        return _VERIFIERS[name]
    near = get_close_matches(name, _VERIFIERS, n=1)
    remedy = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(names())}"
    raise UserError(f'verifier "{name}" is not registered; {remedy}')


def parse_params(name: str, parameters: Mapping[str, Any]) -> BaseModel:
    """The typed parameters of verifier `name` (a row's `verifier_parm`).

    Raises:
        UserError: the verifier is not registered, or a field is unknown or invalid; every such field is named.
    """
    try:
        params: BaseModel = get(name).Params.model_validate(dict(parameters))
    except ValidationError as error:
        faults = "; ".join(
            f"verifier_parm.{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']} (got {fault['input']!r})"
            for fault in error.errors(include_url=False)
        )
        raise UserError(f'verifier "{name}": {faults}') from error
    return params
