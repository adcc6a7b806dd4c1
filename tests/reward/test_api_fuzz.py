"""The API under generated requests: by its own schema, and 50,000 mutated ones. Real workers judge them all."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import httpx
import hypothesis
import orjson
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tests.reward.conftest import Serve, Server, item
from tests.reward.test_server import BOXES, PAYLOAD, RELEASED, judge, resident

from vtriune.verifiers import registry

ENDPOINTS = (
    "GET /",
    "GET /healthz",
    "GET /readyz",
    "GET /v1/verifiers",
    "GET /metrics",
    "POST /v1/judge",
    "POST /v1/judge/stream",
    "POST /judge",
    "POST /openrlhf",
)
EXAMPLES = {"GET": 3, "POST": 40}
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
KNOWN_ERRORS = {400, 404, 405, 413, 422, 429}
"""What a request can be refused with, for its own sake or the queue's; 503 is a verdict `failed` of `/judge` only."""


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    refusals = {"expected-statuses": [*map(str, sorted(KNOWN_ERRORS)), "5xx"]}
    config = schemathesis.Config.from_dict({"checks": {"negative_data_rejection": refusals}})
    return schemathesis.openapi.from_dict(server.http.get("/openapi.json").json(), config=config)


def test_every_endpoint_is_fuzzed(schema: Any) -> None:
    assert {operation.ok().label for operation in schema.get_all_operations()} == set(ENDPOINTS)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_api_does_as_its_schema_says(server: Server, schema: Any, endpoint: str) -> None:
    method, _, path = endpoint.partition(" ")
    operation = schema[path][method]

    def run(case: Any) -> None:
        # A generated Host or Authorization would be refused before anything is read.
        case.headers = {}
        case.call_and_validate(base_url=server.url, checks=CHECKS, headers={"Host": "localhost"})

    fitting = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    others = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    tested = hypothesis.given(case=fitting | others if method == "POST" else fitting)(run)
    slow = [
        hypothesis.HealthCheck.too_slow,
        hypothesis.HealthCheck.filter_too_much,
        hypothesis.HealthCheck.data_too_large,
    ]
    hypothesis.settings(max_examples=EXAMPLES[method], suppress_health_check=slow, deadline=None)(tested)()


# Mutated requests.

Json = Any

VALUES: tuple[Json, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, -(2**63), 2**64, 1e308, 1e-308, 0.1, "", "0", "nan", "\0", "\n", "'",
    '"', "\\", "\u2028", "\U0001f600", "é" * 50, "<answer>", r"\boxed{", r"\boxed{4}", "4", "[]", "{}", "x" * 300, [],
    {}, [[]], [None], {"": None}, {"a": {"b": [1, {"c": None}]}}, "train", "test", "modern", "paper", "official_code",
)  # fmt: skip


def bodies(rng: random.Random, number: int) -> tuple[str, bytes]:
    """A path and a body: one that is in order, with some of its values, its structure or its bytes changed."""
    path = rng.choice(("/v1/judge", "/v1/judge", "/v1/judge/stream", "/judge"))
    body: Json
    if path == "/judge":
        body = PAYLOAD | (BOXES if rng.random() < 0.5 else {})
        if rng.random() < 0.5:
            parm = mutated(orjson.loads(cast(str, body["reward_verifier_parm"])), rng, rng.randint(0, 3))
            body |= {"reward_verifier_parm": dumps(parm).decode()}
    else:
        verifier = rng.choice(registry.names())
        body = {
            "items": [
                item(f"{number}-{n}", gold=rng.choice(("4", "[]", "cat", "")), spec={"verifier": verifier})
                for n in range(rng.choice((1, 1, 1, 3)))
            ]
        }
    data = dumps(mutated(body, rng, rng.choice((0, 1, 1, 2, 5))))
    return path, garbled(data, rng) if rng.random() < 0.2 else data


def dumps(value: Json) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:  # whole numbers beyond 64 bits
        import json

        return json.dumps(value).encode()


def mutated(value: Json, rng: random.Random, times: int) -> Json:
    value = orjson.loads(dumps(value))
    for _ in range(times):
        places = list(places_in(value))
        if places:
            holder, key = rng.choice(places)
            match rng.randrange(4):
                case 0 if isinstance(holder, dict):
                    holder[rng.choice(("", "id", "x", "parameters", "preset"))] = rng.choice(VALUES)
                case 1:
                    del holder[key]
                case 2 if isinstance(holder[key], str):
                    text = holder[key]
                    cut = rng.randint(0, len(text))
                    holder[key] = text[:cut] + rng.choice([one for one in VALUES if isinstance(one, str)]) + text[cut:]
                case _:
                    holder[key] = rng.choice(VALUES)
    return value


def places_in(value: Json) -> list[tuple[Json, Any]]:
    found: list[tuple[Json, Any]] = []
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found += [(value, key), *places_in(value[key])]
    return found


def garbled(data: bytes, rng: random.Random) -> bytes:
    cut, end = sorted(rng.choices(range(len(data) + 1), k=2))
    return rng.choice(
        (
            data[:cut],
            data[:cut] + rng.randbytes(3) + data[cut:],
            data[:cut] + data[end:],
            data[:cut] + data[cut:end] * 3 + data[end:],
            data.replace(b"1", b"1" + b"0" * 400),
            data.replace(b"0", b"NaN"),
            data.replace(b":", b":" + b"[" * rng.choice((10, 1000)), 1),
            b"\xef\xbb\xbf" + data,
            data.replace(b"4", rb"\ud800"),
        )
    )


async def send_all(server: Server, count: int, seed: int, check: Callable[[str, httpx.Response], None]) -> None:
    """Send `count` mutated requests over a few connections."""
    rng = random.Random(seed)
    numbers = iter(range(count))
    limits = httpx.Limits(max_connections=8)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, trust_env=False, limits=limits) as http:

        async def client() -> None:
            for number in numbers:
                path, body = bodies(rng, number)
                check(path, await http.post(path, content=body))

        await asyncio.gather(*(client() for _ in range(8)))


def fuzz(server: Server, count: int, seed: int) -> Counter[tuple[str, int]]:
    seen: Counter[tuple[str, int]] = Counter()

    def check(path: str, reply: httpx.Response) -> None:
        seen[path, reply.status_code] += 1
        if reply.status_code == httpx.codes.OK:
            for line in reply.content.splitlines() if path.endswith("stream") else [reply.content]:
                orjson.loads(line)
        elif reply.status_code == httpx.codes.SERVICE_UNAVAILABLE:
            assert path == "/judge", reply.text
        else:
            assert reply.status_code in KNOWN_ERRORS, reply.text
            assert isinstance(reply.json()["detail"], str)

    asyncio.run(send_all(server, count, seed, check))
    return seen


def test_mutated_requests_have_answers_or_reasons(server: Server) -> None:
    seen = fuzz(server, 600, seed=1)
    for path in ("/v1/judge", "/v1/judge/stream", "/judge"):
        # Neither is everything refused nor everything judged.
        assert seen[path, 200] > 5
        assert seen[path, 422] > 5
    assert judge(server, item("afterwards"))[0]["reward"] == 1.0
    assert not [line for line in server.logged() if "Traceback" in line]


@pytest.mark.heavy
def test_50_000_mutated_requests_leave_the_server_as_it_was(serve: Serve) -> None:
    server = serve(workers=2)
    server.await_ready()
    # What is remembered on purpose, verdicts and gold, is full after so many.
    seen = fuzz(server, 20_000, seed=2)
    before = resident(server)
    seen += fuzz(server, 30_000, seed=3)
    assert sum(seen.values()) == 50_000
    assert server.process.poll() is None
    # 140 bytes a request: less than any body.
    assert resident(server) < before + 4 * 2**20
    assert judge(server, item("afterwards"))[0]["reward"] == 1.0
    assert not [line for line in server.logged() if "Traceback" in line]
    assert server.stop() == 0


def test_the_mutations_reach_the_parameters_of_the_released_protocol() -> None:
    rng = random.Random(0)
    texts = {body for path, body in (bodies(rng, n) for n in range(200)) if path == "/judge"}
    assert len(texts) > 20
    assert sum(orjson.dumps(orjson.dumps(RELEASED).decode())[1:-2] in one for one in texts) < len(texts)
