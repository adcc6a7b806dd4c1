"""Which verifiers there are, by name, and their parameters checked. Importing it imports no verifier.

A verifier is imported when it is first asked for: the server and the command start quickly, and no row pays for
libraries that its verifier does not need.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ValidationError

from vtriune.types import Preset, Progress, UserError
from vtriune.verifiers.base import Context, Verifier, in_context_of
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

    Places come from a recipe or the server's command line, never from a row or a request. The current folder may hold
    the module; it is searched last, so that a file `signal.py` in it takes nothing from the standard library.

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
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = import_module(module)
    except (Exception, SystemExit) as error:  # whatever the user's module does
        if module.endswith(".py"):
            remedy = "leave out .py"
        elif isinstance(error, ModuleNotFoundError) and error.name == module:
            remedy = "is it in the current folder or in PYTHONPATH?"
        else:
            remedy = "mend it; it must import by itself"
        raise UserError(
            f'verifier "{place}": {module} can\'t be imported ({type(error).__name__}: {error}); {remedy}'
        ) from error
    if not hasattr(found, attribute):
        raise UserError(f'verifier "{place}": {getattr(found, "__file__", module)} has no "{attribute}"')
    verifier = _verifier(place, getattr(found, attribute))
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
    return _verifier(place, getattr(import_module(module), attribute))


def _verifier(place: str, found: Any) -> Verifier[Any, Any]:
    """What stands at `place`, made a verifier. Raises UserError."""
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:  # whatever the user's class does
            raise UserError(
                f'verifier "{place}": the class can\'t be made without arguments ({type(error).__name__}: {error})'
            ) from error
    if not all(hasattr(found, part) for part in ("name", "Params", "parse_gold", "judge")):
        if callable(found):
            return FunctionVerifier(found)
        raise UserError(f'verifier "{place}": is neither a function nor a verifier (name, Params, parse_gold, judge)')
    if not (isinstance(found.name, str) and found.name):
        raise UserError(f'verifier "{place}": its `name` must be what rows call it, got {found.name!r}')
    config = getattr(found.Params, "model_config", {})
    if not (config.get("extra") == "forbid" and config.get("frozen")):
        # Else a parameter misspelt in a row would change nothing and be noticed by nobody.
        wanted = 'model_config = ConfigDict(extra="forbid", frozen=True)'
        raise UserError(f'verifier "{place}": Params must be a pydantic model with {wanted}')
    return cast(Verifier[Any, Any], found)


def eps(name: str, parameters: Mapping[str, Any], preset: Preset, progress: Progress) -> float | None:
    """The eps of eq. 5 that verifier `name` judges with at `progress`; None if it has none or isn't registered.

    >>> eps("detection", {"iou_threshold": [[0, 0.85], [0.1, 0.95]]}, "modern", Progress(10, 100, "train"))
    0.95
    """
    if name not in names():
        return None
    context = Context(preset=preset, split=progress.split, progress=progress)
    return in_context_of(parse_params(name, parameters), context).threshold
