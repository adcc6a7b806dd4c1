"""Which verifiers there are, by name, and their parameters checked. Importing it imports no verifier.

A verifier is imported when it is first asked for: the server and the command start quickly, and no row pays for
libraries that its verifier does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from vtriune.types import UserError
from vtriune.verifiers.base import Verifier
from vtriune.verifiers.function import FunctionVerifier

_PLACES = {
    name: f"vtriune.verifiers.{place}"
    for name, place in {
        "composite": "composite:Composite",
        "counting": "counting:Counting",
        "detection": "detection:Detection",
        "format": "format:Format",
        "grounding": "grounding:Grounding",
        "mask": "mask:Mask",
        "match": "match:Match",
        "mathverify": "mathverify:MathVerify",
        "multiple_choice": "multiple_choice:MultipleChoice",
        "numeric": "numeric:Numeric",
        "ocr": "ocr:Ocr",
        "ordering": "ordering:Ordering",
        "pointing": "pointing:Pointing",
        "remote": "remote:Remote",
        "shaping": "shaping:Shaping",
        "table": "table:TableVerifier",
        "temporal": "temporal:Temporal",
    }.items()
}
"""Name -> `module:attribute`. `register` adds to it."""

_VERIFIERS: dict[str, Verifier[Any, Any]] = {}
"""Those that have been imported."""


def names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_PLACES))


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
    if name not in _VERIFIERS:
        if name not in _PLACES:
            near = get_close_matches(name, _PLACES, n=1)
            remedy = f'did you mean "{near[0]}"?' if near else f"there are: {', '.join(names())}"
            raise UserError(f'verifier "{name}" is not registered; {remedy}')
        _VERIFIERS[name] = _load(_PLACES[name])
    return _VERIFIERS[name]


def register(place: str) -> str:
    """Add a verifier of the user's own: a class, an instance or a plain function (see `FunctionVerifier`).

    Places come from a recipe or the server's command line, never from a row or a request.

    Args:
        place: `module:attribute`; the module is imported.

    Returns:
        Its name.

    Raises:
        UserError: it can't be imported, is no verifier, or its name is taken.
    """
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise UserError(f'verifier "{place}": write it as module:function, e.g. my_rewards:concise')
    try:
        verifier = _load(place)
    except UserError:
        raise
    except Exception as error:  # whatever the user's module does
        raise UserError(
            f'verifier "{place}": can\'t be imported ({type(error).__name__}: {error}); '
            "is the module in the current folder or in PYTHONPATH?"
        ) from error
    if _PLACES.get(verifier.name, place) != place:
        raise UserError(f'verifier "{place}": the name "{verifier.name}" is taken; rename it')
    _PLACES[verifier.name] = place
    _VERIFIERS[verifier.name] = verifier
    return verifier.name


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


def _load(place: str) -> Verifier[Any, Any]:
    module, _, attribute = place.partition(":")
    found = getattr(import_module(module), attribute)
    verifier = found() if isinstance(found, type) else found
    if all(hasattr(verifier, part) for part in ("name", "Params", "parse_gold", "judge")):
        return cast(Verifier[Any, Any], verifier)
    if callable(verifier):
        return FunctionVerifier(verifier)
    raise UserError(f'verifier "{place}": is neither a function nor a verifier (name, Params, parse_gold, judge)')
