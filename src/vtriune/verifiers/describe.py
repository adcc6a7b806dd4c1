"""What there is to know of verifiers: their parameters as JSON Schema, and as the tables of `vtriune verifiers`.

Returns data and rich renderables; prints nothing, judges nothing.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from textwrap import dedent
from typing import Any

import orjson
from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema
from rich import box
from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from vtriune.verifiers import registry


def docstring(name: str) -> str:
    """The docstring of a verifier, its margin removed; empty for an own verifier without one."""
    return inspect.getdoc(registry.get(name)) or ""


def summary(name: str) -> str:
    """The first paragraph of a verifier's docstring, which is its first line, wrapped."""
    return " ".join(docstring(name).partition("\n\n")[0].split())


def schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a verifier's parameters, documented as in the code.

    >>> schema("detection")["properties"]["eval_iou_threshold"]["description"]
    'eps on the test split: always fixed, so that its curve can be compared over time.'
    """
    params: type[BaseModel] = registry.get(name).Params
    return params.model_json_schema(schema_generator=_Documented)


def verifiers_table(names: tuple[str, ...]) -> Table:
    """Verifiers by name, with the first line of what they say of themselves."""
    table = Table("verifier", "what it measures", box=box.SIMPLE_HEAD)
    for name in names:
        table.add_row(Text(name), Text(summary(name)))
    return table


def verifier_page(name: str) -> RenderableType:
    """A verifier's docstring, and its parameters with type, default and meaning."""
    whole = schema(name)
    rows = list(_rows(whole, whole.get("$defs", {}), prefix=""))
    if not rows:
        return Group(Text(name, style="bold"), Text(), Text(docstring(name)), Text(), Text("It has no parameters."))
    table = Table(Column("parameter", no_wrap=True, overflow="fold"), "type", "default", "meaning", box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(Text(name, style="bold"), Text(), Text(docstring(name)), table)


def _rows(schema: dict[str, Any], defs: dict[str, Any], prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """One row per parameter, and below it those of the objects it is made of."""
    for name, field in schema.get("properties", {}).items():
        default = orjson.dumps(field["default"]).decode() if "default" in field else "required"
        meaning = " ".join(field.get("description", "").split())
        yield prefix + name, _type(field, defs), default, meaning
        for inner in _objects(field, defs):
            yield from _rows(inner, defs, f"{prefix}{name}.")


def _objects(field: dict[str, Any], defs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The objects with properties that a field is, or is a list or choice of."""
    field = _resolved(field, defs)
    if "properties" in field:
        yield field
    for inner in (field.get("items"), *field.get("anyOf", ())):
        if isinstance(inner, dict):
            yield from _objects(inner, defs)


def _resolved(field: dict[str, Any], defs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = defs[field["$ref"].rpartition("/")[2]] if "$ref" in field else field
    return found


def _type(field: dict[str, Any], defs: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    field = _resolved(field, defs)
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_type(one, defs) for one in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " | ".join(map(str, field.get("enum", [field.get("const")])))
    if "prefixItems" in field:
        return f"[{', '.join(_type(one, defs) for one in field['prefixItems'])}]"
    kinds = field.get("type", "any")
    kind = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    if kind == "array":
        return f"list of {_type(field.get('items', {}), defs)}"
    if "minimum" in field and "maximum" in field:
        return f"{kind} {field['minimum']:g}..{field['maximum']:g}"
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    return " ".join([kind, *(f"{sign} {field[bound]:g}" for bound, sign in bounds.items() if bound in field)])


class _Documented(GenerateJsonSchema):
    """The docstring below a field becomes its description, where it has no other."""

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        json_schema = super().model_schema(schema)
        model: type[BaseModel] = schema["cls"]
        for field, doc in _field_docs(model).items():
            name = model.model_fields[field].alias or field
            json_schema["properties"][name].setdefault("description", doc)
        # The class's own docstring, or what it has inherited, is for whoever reads code.
        json_schema.pop("description", None)
        return json_schema


@cache
def _field_docs(model: type[BaseModel]) -> dict[str, str]:
    docs: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base is BaseModel:
            continue
        try:
            body = ast.parse(dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue  # made by code: described by `Field`
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for field, below in pairwise(statements):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(doc))):
                    docs[name] = inspect.cleandoc(doc)
    return {name: doc for name, doc in docs.items() if name in model.model_fields}
