"""What holds for every verifier that rows can name, whoever wrote it."""

from __future__ import annotations

import inspect
import json
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from vtriune.verifiers import describe, registry

NAMES = registry.names()


def models(name: str) -> list[dict[str, Any]]:
    """The JSON Schemas of a verifier's parameters and of every object within them."""
    schema = describe.schema(name)
    return [schema, *schema.get("$defs", {}).values()]


@pytest.mark.parametrize("name", NAMES)
def test_its_name_is_the_one_it_is_registered_by(name: str) -> None:
    assert registry.get(name).name == name


@pytest.mark.parametrize("name", NAMES)
def test_its_parameters_are_frozen_and_refuse_what_they_do_not_know(name: str) -> None:
    params = registry.get(name).Params
    assert issubclass(params, BaseModel)
    for model in (params, *(base for base in params.__mro__ if issubclass(base, BaseModel) and base is not BaseModel)):
        assert (model.model_config.get("frozen"), model.model_config.get("extra")) == (True, "forbid")
    assert all(schema.get("additionalProperties") is False for schema in models(name) if "properties" in schema)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_says_what_it_means(name: str) -> None:
    undocumented = [
        f"{schema['title']}.{field}"
        for schema in models(name)
        for field, content in schema.get("properties", {}).items()
        if not content.get("description")
    ]
    assert undocumented == []


@pytest.mark.parametrize("name", NAMES)
def test_its_json_schema_is_one_and_survives_json(name: str) -> None:
    schema = json.loads(json.dumps(describe.schema(name), allow_nan=False))
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("name", NAMES)
def test_equal_parameters_are_equal_keys(name: str) -> None:
    examples: dict[str, dict[str, Any]] = {
        "composite": {"parts": [{"verifier": "format", "parameters": {"kind": "json_schema", "schema": {"a": [1]}}}]},
        "remote": {"service": "x", "parameters": {"a": [1, {}]}},
        "shaping": {"kind": "repetition"},
    }
    # A verifier that can't be asked for without parameters needs an example here.
    parameters = examples.get(name, {})
    assert len({registry.parse_params(name, parameters), registry.parse_params(name, parameters)}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_its_docstring_defines_it_names_its_source_and_runs(name: str) -> None:
    verifier = registry.get(name)
    doc = inspect.getdoc(type(verifier)) or ""
    assert "Source" in doc
    assert ">>>" in doc
    assert describe.docstring(name) == doc


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_signatures_of_a_verifier(name: str) -> None:
    verifier = registry.get(name)
    assert list(inspect.signature(verifier.parse_gold).parameters) == ["gold", "params", "context"]
    assert list(inspect.signature(verifier.judge).parameters) == ["response", "gold", "params", "context"]
    assert verifier.parse_gold.__doc__
    assert verifier.judge.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_its_page_can_be_drawn(name: str) -> None:
    from rich.console import Console

    console = Console(width=140)
    with console.capture() as drawn:
        console.print(describe.verifier_page(name))
    assert all(field in drawn.get() for field in describe.schema(name).get("properties", {}))
