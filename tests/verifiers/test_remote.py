"""Remote services, real ones: what is asked, what is believed, and that whatever goes wrong is `failed`, never 0."""

from __future__ import annotations

import gzip
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from vtriune.reward.judge import JudgeItem, judge_item, validate
from vtriune.types import Progress, RewardSpec, Status, UserError, Verdict
from vtriune.verifiers import remote

MAX_JUNK = 2 * remote.MAX_REPLY


class Service(ThreadingHTTPServer):
    """Answers as `behave` says, and remembers what it was asked and over which connections."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behave: Callable[[_Handler], None] = lambda handler: handler.reply({"accuracy": 1})
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.connections: set[Any] = set()
        self.hang = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/judge"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append(json.loads(body))
        self.server.headers.append({key.lower(): value for key, value in self.headers.items()})
        self.server.connections.add(self.client_address)
        self.server.behave(self)

    def reply(self, body: Any, status: int = 200, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    server = Service()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    remote.configure({"style": server.url}, deadline=10)
    yield server
    remote.configure({})
    server.hang.set()
    server.shutdown()
    thread.join()
    server.server_close()


def ask(response: str = "four", gold: str = "4", name: str = "style", **parameters: Any) -> Verdict:
    given = {"service": name, **({"parameters": parameters} if parameters else {})}
    return judge_item(JudgeItem(response, RewardSpec("remote", gold, parameters=given), Progress(0, 10, "train")))


def test_the_question_is_as_documented(service: Service) -> None:
    assert ask("<think>é</think>", "\u0000 gold", tone="calm", depth={"a": [1, None]}).reward == 1
    assert service.asked == [
        {
            "response": "<think>é</think>",
            "ground_truth": "\u0000 gold",
            "parameters": {"tone": "calm", "depth": {"a": [1, None]}},
            "split": "train",
            "preset": "modern",
        }
    ]


def test_the_answer_is_believed_as_it_is(service: Service) -> None:
    reply = {"accuracy": 0.25, "correct": True, "report": {"wit": -3, "tone": 0.5}, "reason": "fine", "cost": 3}
    service.behave = lambda handler: handler.reply(reply)
    verdict = ask("<think>.</think><answer>a</answer>")
    assert (verdict.status, verdict.accuracy, verdict.correct, verdict.format) == (Status.SCORED, 0.25, True, 1.0)
    assert (verdict.report, verdict.reason) == ({"wit": -3, "tone": 0.5}, "")


@pytest.mark.parametrize(("accuracy", "correct"), [(1, True), (1.0, True), (0.999, False), (0, False)])
def test_correct_means_1_where_the_service_does_not_say(service: Service, accuracy: float, correct: bool) -> None:
    service.behave = lambda handler: handler.reply({"accuracy": accuracy, "correct": None, "reason": "because"})
    verdict = ask()
    assert (verdict.accuracy, verdict.correct) == (accuracy, correct)
    assert verdict.reason == ("" if accuracy else "because")


def test_the_connection_is_kept(service: Service) -> None:
    assert [ask(str(k)).reward for k in range(5)] == [1.0] * 5
    assert len(service.connections) == 1


BODIES: dict[str, Any] = {
    "nothing": b"",
    "no JSON": b"<html>",
    "no Unicode": b"\xff\xfe",
    "half": b'{"accuracy": 1',
    "a list": [1],
    "a number": 1,
    "no accuracy": {"reward": 1},
    "text": {"accuracy": "1"},
    "a bool": {"accuracy": True},
    "null": {"accuracy": None},
    "NaN": b'{"accuracy": NaN}',
    "infinity": b'{"accuracy": 1e999}',
    "above 1": {"accuracy": 1.0001},
    "below 0": {"accuracy": -1e-9},
    "correct is text": {"accuracy": 1, "correct": "yes"},
    "a report of text": {"accuracy": 1, "report": {"a": "b"}},
    "a report with NaN": b'{"accuracy": 1, "report": {"a": NaN}}',
    "too large a report": {"accuracy": 1, "report": {str(k): 1 for k in range(101)}},
    "too long a key": {"accuracy": 1, "report": {"k" * 101: 1}},
    "depth": b'{"accuracy": 1, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "length": b'{"accuracy": 1, "x": "' + b"a" * MAX_JUNK + b'"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_garbage_is_failed(service: Service, body: Any) -> None:
    service.behave = lambda handler: handler.reply(body)
    verdict = ask()
    assert (verdict.status, verdict.reward) == (Status.FAILED, None)
    assert 'service "style": ' in verdict.reason
    service.behave = lambda handler: handler.reply({"accuracy": 1})
    assert ask().reward == 1


@pytest.mark.parametrize("status", [201, 204, 301, 400, 404, 429, 500, 503])
def test_every_status_but_200_is_failed_and_no_redirect_is_followed(service: Service, status: int) -> None:
    body = b"" if status == 204 else {"accuracy": 1}
    service.behave = lambda handler: handler.reply(body, status, location="http://127.0.0.1:9/")
    verdict = ask()
    assert verdict.status is Status.FAILED
    assert f"answered with status {status}" in verdict.reason
    assert len(service.asked) == 1


def test_a_compressed_reply_is_not_unpacked(service: Service) -> None:
    bomb = gzip.compress(b'{"accuracy": 1}' + b" " * 50_000_000)
    service.behave = lambda handler: handler.reply(bomb, content_encoding="gzip")
    assert ask().status is Status.FAILED
    assert service.headers[0]["accept-encoding"] == "identity"


def test_a_service_that_hangs_is_failed(service: Service) -> None:
    def hang(handler: _Handler) -> None:
        service.hang.wait()

    service.behave = hang
    remote.configure({"style": service.url}, deadline=0.2)
    verdict = ask()
    assert verdict.status is Status.FAILED
    assert "ReadTimeout" in verdict.reason


def test_a_service_that_sends_a_byte_at_a_time_for_ever_is_failed(service: Service) -> None:
    def trickle(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "1000000")
        handler.end_headers()
        while not service.hang.wait(0.02):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return

    service.behave = trickle
    remote.configure({"style": service.url}, deadline=0.3)
    verdict = ask()
    assert verdict.status is Status.FAILED
    assert "no whole reply after 0.3 s" in verdict.reason


def test_a_service_that_hangs_up_in_the_middle_is_failed(service: Service) -> None:
    def hang_up(handler: _Handler) -> None:
        handler.send_response(200)
        handler.send_header("content-length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"accuracy": 1}')
        handler.close_connection = True

    service.behave = hang_up
    verdict = ask()
    assert verdict.status is Status.FAILED
    assert "RemoteProtocolError" in verdict.reason


def test_a_service_that_is_not_there_is_failed() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        remote.configure({"gone": f"http://127.0.0.1:{free.getsockname()[1]}"})
    verdict = ask(name="gone")
    remote.configure({})
    assert verdict.status is Status.FAILED
    assert 'service "gone": ConnectError' in verdict.reason


def test_a_service_killed_between_two_answers_fails_the_second_and_serves_again_when_back() -> None:
    script = (
        "import http.server, json, sys\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    protocol_version = 'HTTP/1.1'\n"
        "    def do_POST(self):\n"
        "        self.rfile.read(int(self.headers['content-length'])); body = b'{\"accuracy\": 0.5}'\n"
        "        self.send_response(200); self.send_header('content-length', str(len(body))); self.end_headers()\n"
        "        self.wfile.write(body)\n"
        "server = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H)\n"
        "print(server.server_port, flush=True); server.serve_forever()\n"
    )

    def start(port: int) -> tuple[subprocess.Popen[str], int]:
        command = [sys.executable, "-c", script, str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        return process, int(process.stdout.readline())

    def end(process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()

    process, port = start(0)
    try:
        remote.configure({"style": f"http://127.0.0.1:{port}"})
        assert ask("1").reward == 0.5
        end(process)
        assert ask("2").status is Status.FAILED
        process, _ = start(port)
        assert ask("3").reward == 0.5
    finally:
        end(process)
        remote.configure({})


def test_a_service_nobody_configured_is_unscorable_and_known_before_training(service: Service) -> None:
    verdict = ask(name="stile")
    assert verdict.status is Status.UNSCORABLE
    assert verdict.reason == 'service "stile" is not configured; there are: style (--remote NAME=URL)'
    with pytest.raises(UserError, match="is not configured"):
        validate(RewardSpec("remote", "4", parameters={"service": "stile"}))


def test_a_row_cannot_name_a_url(service: Service) -> None:
    for parameters in ({"service": service.url}, {"service": "style", "url": service.url}):
        spec = RewardSpec("remote", "4", parameters=parameters)
        assert judge_item(JudgeItem("a", spec, Progress(0, 1, "train"))).status is Status.UNSCORABLE
    assert service.asked == []


def test_proxies_of_the_environment_are_not_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    remote._client.cache_clear()
    assert ask().reward == 1


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://a/b", "file:///etc/passwd", "http://", "http://a:b/", "http://["]
)
def test_what_is_no_url_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(UserError, match=r'remote service "style": .* is no URL'):
        remote.configure({"style": url})


def test_waiting_costs_no_cpu_so_that_no_answer_pays_for_a_slow_service(service: Service) -> None:
    def dawdle(handler: _Handler) -> None:
        time.sleep(0.5)
        handler.reply({"accuracy": 1})

    service.behave = dawdle
    ask()
    before = time.thread_time()
    assert ask("again").reward == 1
    assert time.thread_time() - before < 0.25
