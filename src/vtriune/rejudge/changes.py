"""What `vtriune rejudge --set` changes: keys of rows' `reward_model` and the preset, for one source or for all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, get_args

import yaml

from vtriune.types import Preset, RewardSpec, UserError
from vtriune.verifiers import registry

_KEYS = ("verifier", "verifier_parm", "accuracy_ratio", "format_ratio", "preset")
_CHANGE = re.compile(r"(?:(?P<source>[^=]+):)?(?P<key>[^=:]+)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Change:
    """One `--set`: a key of a row's `reward_model`, or the preset, for one source or all."""

    text: str
    """As written."""
    source: str | None
    key: tuple[str, ...]
    """(`verifier_parm`, name, ...), or one of the others alone."""
    value: Any

    @classmethod
    def read(cls, text: str) -> Change:
        """From `[SOURCE:]key=value`, whose value is YAML.

        Raises:
            UserError: it is not written so, or the key is none.

        >>> change = Change.read("boxes:verifier_parm.iou_threshold=0.5")
        >>> change.source, change.key, change.value
        ('boxes', ('verifier_parm', 'iou_threshold'), 0.5)
        """
        found = _CHANGE.fullmatch(text)
        if not found or not all(found["key"].split(".")):
            raise UserError(f'--set "{text}": write it as [SOURCE:]key=value, e.g. verifier_parm.iou_threshold=0.5')
        try:
            value = yaml.safe_load(found["value"])
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f'--set "{text}": the value is not YAML: {error}') from error
        change = cls(text, found["source"], tuple(found["key"].split(".")), value)
        change._check()
        return change

    def _check(self) -> None:
        name, *rest = self.key
        if name not in _KEYS:
            raise UserError(f'--set "{self.text}": unknown key "{name}"; {near(name, _KEYS)}')
        if bool(rest) != (name == "verifier_parm"):
            raise UserError(
                f'--set "{self.text}": name a parameter, e.g. verifier_parm.iou_threshold=0.5'
                if not rest
                else f'--set "{self.text}": {name} has no keys below it; write {name}=value'
            )
        if name == "preset" and self.value not in get_args(Preset):
            raise UserError(f'--set "{self.text}": there is no preset {self.value!r}; {near("", get_args(Preset))}')
        if name.endswith("_ratio"):
            is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
            if not (is_number and math.isfinite(self.value) and self.value >= 0):
                raise UserError(f'--set "{self.text}": {name} is a number of at least 0, not {self.value!r}')


def apply(changes: Sequence[Change], source: str, spec: RewardSpec) -> RewardSpec:
    """How an answer of `source` is rewarded after the changes that concern it.

    Another verifier comes first and brings no parameters along, as in a recipe's source; then the others in their
    order. A parameter that is set for all sources leaves verifiers alone that have none of that name.
    """
    for change in sorted(changes, key=lambda one: one.key[0] != "verifier"):
        if change.source in (None, source):
            spec = _changed(spec, change)
    return spec


def _changed(spec: RewardSpec, change: Change) -> RewardSpec:
    name, *leaf = change.key
    if name == "verifier":
        return spec if spec.verifier == change.value else replace(spec, verifier=str(change.value), parameters={})
    if name == "accuracy_ratio":
        return replace(spec, accuracy_weight=float(change.value))
    if name == "format_ratio":
        return replace(spec, format_weight=float(change.value))
    if name == "preset":
        return replace(spec, preset=change.value)
    if change.source is None and leaf[0] not in parameters_of(spec.verifier):
        return spec
    return replace(spec, parameters=_with_leaf(spec.parameters, leaf, change.value))


def parameters_of(verifier: str) -> tuple[str, ...]:
    """The names of a verifier's parameters; none of one that is not loaded, whose answers are unscorable anyway."""
    try:
        return tuple(registry.get(verifier).Params.model_fields)
    except UserError:
        return ()


def near(name: str, known: Sequence[str]) -> str:
    """The remedy for a name that is none.

    >>> near("verifer", ("verifier", "preset")), near("x", ("verifier", "preset"))
    ('did you mean "verifier"?', 'there are verifier, preset')
    """
    found = get_close_matches(name, known, n=1)
    return f'did you mean "{found[0]}"?' if found else f"there are {', '.join(known) or 'none'}"


def _with_leaf(under: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """`under` with the leaf at `path` set, or removed by a null.

    >>> _with_leaf({"a": {"b": 1}, "c": 2}, ["a", "b"], None), _with_leaf({}, ["a", "b"], 3)
    ({'a': {}, 'c': 2}, {'a': {'b': 3}})
    """
    name, *rest = path
    changed = dict(under)
    if rest:
        below = changed.get(name)
        changed[name] = _with_leaf(below if isinstance(below, Mapping) else {}, rest, value)
    elif value is None:
        changed.pop(name, None)
    else:
        changed[name] = value
    return changed
