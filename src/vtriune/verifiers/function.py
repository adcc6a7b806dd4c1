"""A plain function as a verifier: the short way to write one's own. docs/own_verifier.md shows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, SupportsFloat, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from vtriune.types import UserError
from vtriune.verifiers.base import Context, Outcome
from vtriune.verifiers.format import tag_score

_SIGNATURE = "its signature must be (response, gold, *, parameter=..., ...)"


class FunctionVerifier:
    """R_acc is what `function(response, gold, **parameters)` returns; correct means 1.

    The function returns a number from 0 to 1, a bool, or an `Outcome`; it raises `Unscorable` if gold or a parameter
    can't be judged against. Whatever else it returns or raises makes the verdict `failed`. Its keyword-only arguments
    are the verifier's parameters, checked by their type hints; `Annotated[int, Field(ge=1, description="...")]` bounds
    and documents one. Its name is the verifier's name. R_fmt is eq. 4.

    Raises:
        UserError: it has another signature, no name, or parameters that can't be checked.

    >>> def concise(response: str, gold: str, *, limit: int = 20) -> float:
    ...     return float(gold in response and len(response) <= limit)
    >>> verifier = FunctionVerifier(concise)
    >>> params = verifier.Params(limit=9)
    >>> verifier.judge("it is 4", "4", params, Context(preset="modern", split="test")).accuracy
    1.0
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = getattr(function, "__name__", "")
        if not self.name.isidentifier():
            raise UserError(f"verifier {function!r}: has no name of its own; write it as `def name(response, gold):`")
        self.__doc__ = inspect.getdoc(function)
        self._function = function
        self.Params: type[BaseModel] = _params(function, self.name)

    def parse_gold(self, gold: str, params: BaseModel, context: Context) -> str:
        """Gold as it stands."""
        return gold

    def judge(self, response: str, gold: str, params: BaseModel, context: Context) -> Outcome:
        """Call the function.

        Raises:
            TypeError, ValueError: it returns what is no worth.
        """
        worth = self._function(response, gold, **dict(params))
        if isinstance(worth, Outcome):
            return _checked(worth)
        if not isinstance(worth, SupportsFloat):
            raise TypeError(f"returned {worth!r}; a verifier returns a number from 0 to 1, a bool or an Outcome")
        accuracy = float(worth)
        return _checked(Outcome(accuracy, tag_score(response), correct=accuracy == 1))


def _params(function: Callable[..., Any], name: str) -> type[BaseModel]:
    """The model of a function's keyword-only arguments."""
    try:
        arguments = list(inspect.signature(function).parameters.values())
        hints = get_type_hints(function, include_extras=True)
    except (ValueError, TypeError) as error:
        raise UserError(f'verifier "{name}": {_SIGNATURE}; {error}') from error
    except NameError as error:
        raise UserError(f'verifier "{name}": a type hint can\'t be resolved ({error}); import its name') from error
    options = [one for one in arguments[2:] if one.kind is one.KEYWORD_ONLY]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(arguments) - len(options) != 2 or any(one.kind not in positional for one in arguments[:2]):
        raise UserError(f'verifier "{name}": {_SIGNATURE}')
    if inspect.iscoroutinefunction(function):
        raise UserError(f'verifier "{name}": is async, and a verifier only computes; write it as a plain `def`')
    fields: dict[str, Any] = {
        one.name: (hints.get(one.name, Any), ... if one.default is one.empty else one.default) for one in options
    }
    if any(one.startswith("_") for one in fields):
        raise UserError(f'verifier "{name}": a parameter can\'t begin with an underscore; rename it')
    config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    try:
        return create_model(f"{name}Params", __config__=config, **fields)
    except Exception as error:  # whatever pydantic makes of the user's hints and names
        raise UserError(
            f'verifier "{name}": its parameters can\'t be checked ({type(error).__name__}: '
            f"{str(error).partition(chr(10))[0]}); give them type hints of JSON values"
        ) from error


def _checked(outcome: Outcome) -> Outcome:
    for part, value in (("accuracy", outcome.accuracy), ("format", outcome.format)):
        if not 0 <= value <= 1:
            raise ValueError(f"returned {part} {value}; a verifier returns numbers from 0 to 1")
    return outcome
