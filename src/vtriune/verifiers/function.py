"""A plain function as a verifier: the short way to write one's own. docs/own_verifier.md shows it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from vtriune.types import UserError
from vtriune.verifiers.base import Context, Outcome
from vtriune.verifiers.format import tag_score


class FunctionVerifier:
    """R_acc is what `function(response, gold, **parameters)` returns; correct means 1.

    The function returns a number from 0 to 1, a bool, or an `Outcome`; it raises `Unscorable` if gold or a parameter
    can't be judged against. Its keyword-only arguments are the verifier's parameters, checked by their type hints. Its
    name is the verifier's name. R_fmt is eq. 4.

    Raises:
        UserError: the signature is another one.

    >>> def concise(response: str, gold: str, *, limit: int = 20) -> float:
    ...     return float(gold in response and len(response) <= limit)
    >>> verifier = FunctionVerifier(concise)
    >>> params = verifier.Params(limit=9)
    >>> verifier.judge("it is 4", "4", params, Context(preset="modern", split="test")).accuracy
    1.0
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.name = function.__name__
        self._function = function
        hints = get_type_hints(function)
        arguments = list(inspect.signature(function).parameters.values())
        options = [one for one in arguments[2:] if one.kind is one.KEYWORD_ONLY]
        if len(arguments) - len(options) != 2 or any(
            one.kind is not one.POSITIONAL_OR_KEYWORD for one in arguments[:2]
        ):
            raise UserError(f'verifier "{self.name}": its signature must be (response, gold, *, parameter=..., ...)')
        fields: dict[str, Any] = {
            one.name: (hints.get(one.name, Any), ... if one.default is one.empty else one.default) for one in options
        }
        self.Params: type[BaseModel] = create_model(
            f"{self.name}Params", __config__=ConfigDict(extra="forbid", frozen=True), **fields
        )

    def parse_gold(self, gold: str, params: BaseModel, context: Context) -> str:
        """Gold as it stands."""
        return gold

    def judge(self, response: str, gold: str, params: BaseModel, context: Context) -> Outcome:
        """Call the function."""
        worth = self._function(response, gold, **dict(params))
        if isinstance(worth, Outcome):
            return worth
        accuracy = float(worth)
        if not 0 <= accuracy <= 1:
            raise ValueError(f"returned {accuracy}; a verifier returns a number from 0 to 1")
        return Outcome(accuracy, tag_score(response), correct=accuracy == 1)
