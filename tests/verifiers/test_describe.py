"""Verifiers described: documented schemas, and the command `vtriune verifiers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import jsonschema
import pytest
from pydantic import BaseModel, ConfigDict, Field

from vtriune.verifiers import describe, registry
from vtriune.verifiers.base import Schedule, Share
from vtriune.verifiers.function import FunctionVerifier

Vtriune = Callable[..., subprocess.CompletedProcess[str]]

OWN = '''
import colorsys  # of the standard library, whatever the current folder holds

def concise(response: str, gold: str, *, limit: int = 20) -> float:
    """[bold]Short[/bold] and right."""
    return float(gold in response and len(response) <= limit)

def bare(response, gold):
    return response == gold
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_rewards.py").write_text(OWN)
    for module in ("colorsys", "signal"):
        (tmp_path / f"{module}.py").write_text("raise RuntimeError('shadowed')")
    return tmp_path


def installed(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As the installed command: the current folder is not importable by itself."""
    command = [sys.executable, "-P", "-m", "vtriune.cli", "verifiers", *arguments]
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", cwd=folder, env=environment, check=False)


def test_all_verifiers_are_listed_with_what_they_measure(vtriune: Vtriune) -> None:
    shown = vtriune("verifiers")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert all(name in shown.stdout for name in registry.names())
    assert "R_acc of eq. 3: 1 if math-verify finds the boxed answer equivalent to gold" in shown.stdout


def test_one_is_shown_with_its_docstring_and_parameters(vtriune: Vtriune) -> None:
    shown = vtriune("verifiers", "composite")
    assert (shown.returncode, shown.stderr) == (0, "")
    words = " ".join(shown.stdout.split())
    assert "`gated`: 0 unless the first part is correct; then `weighted` of the others." in words
    assert "parts.weight number >= 0 1.0 w, for `weighted` and `gated`; with 0 it is only reported." in words
    assert "combine weighted | gated | min | max" in words
    assert "parts list of object required" in words


def test_json_is_names_and_schemas(vtriune: Vtriune) -> None:
    described = json.loads(vtriune("verifiers", "--json").stdout)
    assert [one["name"] for one in described] == list(registry.names())
    for one in described:
        jsonschema.Draft202012Validator.check_schema(one["parameters"])
    (composite,) = json.loads(vtriune("verifiers", "composite", "--json").stdout)
    parts = {"parts": [{"verifier": "format", "parameters": {"kind": "strict"}}]}
    jsonschema.validate(parts, composite["parameters"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"parts": [{"verifier": "format", "wieght": 1}]}, composite["parameters"])


def test_own_verifiers_are_included_and_shadow_nothing(folder: Path) -> None:
    shown = installed(folder, "--load", "my_rewards:concise", "--load", "my_rewards:bare", "--json", "bare")
    assert (shown.returncode, shown.stderr) == (0, "")
    shown = installed(folder, "concise", "--load", "my_rewards:concise")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "[bold]Short[/bold] and right." in shown.stdout
    assert "limit       integer   20" in shown.stdout
    shown = installed(folder, "bare", "--load", "my_rewards:bare")
    assert "It has no parameters." in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("detecton",), 'verifier "detecton" is not registered; did you mean "detection"?'),
        (("concise",), 'verifier "concise" is not registered; '),
        (("--load", "my_rewards"), 'verifier "my_rewards": write it as module:function'),
        (("--load", "my_reward:concise"), 'verifier "my_reward:concise": my_reward can\'t be imported (ModuleNotFound'),
        (("--load", "my_rewards:precise"), 'has no "precise"'),
        (("--load", "colorsys:concise"), 'colorsys.py has no "concise"'),
    ],
)
def test_what_is_not_there_is_one_message_without_a_traceback(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    shown = installed(folder, *arguments)
    assert (shown.returncode, shown.stdout) == (2, "")
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr


class Inner(BaseModel):
    """Not for the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int
    """How deep."""


class Base(BaseModel):
    """Not for the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    inherited: Share = 0.5
    """From
    the base."""
    changed: bool = True
    """As the base has it."""


class Derived(Base):
    """Not for the schema."""

    changed: bool = False
    """As it is."""
    renamed: Literal["a", "b"] = Field("a", alias="other")
    """By its alias."""
    said: Annotated[int, Field(gt=3, description="By Field.")] = 4
    """Not this."""
    inner: tuple[Inner, ...] = ()
    """Objects."""
    eps: Schedule = ((0.0, 0.5),)
    """A schedule."""
    silent: int | None = None


def test_docstrings_below_fields_are_descriptions_inherited_renamed_and_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(response: str, gold: str) -> bool:
        return True

    verifier = FunctionVerifier(shown)
    verifier.Params = Derived
    monkeypatch.setitem(registry._PLACES, "shown", "here:shown")
    monkeypatch.setitem(registry._VERIFIERS, "shown", verifier)
    schema = describe.schema("shown")
    assert "description" not in schema
    assert {name: field.get("description") for name, field in schema["properties"].items()} == {
        "inherited": "From\nthe base.",
        "changed": "As it is.",
        "other": "By its alias.",
        "said": "By Field.",
        "inner": "Objects.",
        "eps": "A schedule.",
        "silent": None,
    }
    assert schema["$defs"]["Inner"]["properties"]["depth"]["description"] == "How deep."
    rows = list(describe._rows(schema, schema["$defs"], prefix=""))
    assert [row[:3] for row in rows] == [
        ("inherited", "number 0..1", "0.5"),
        ("changed", "boolean", "false"),
        ("other", "a | b", '"a"'),
        ("said", "integer > 3", "4"),
        ("inner", "list of object", "[]"),
        ("inner.depth", "integer", "required"),
        ("eps", "list of [number >= 0 < 1, number 0..1]", "[[0.0,0.5]]"),
        ("silent", "integer or null", "null"),
    ]
