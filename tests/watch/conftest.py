"""What the dashboard's tests share: runs to look at, a browser, and a page that must not say a wrong word."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Route, sync_playwright
from tests.watch.worlds import Writer

from vtriune.playground.dataset import write_playground
from vtriune.reward.pool import JudgePool

ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--disable-component-update",
    "--disable-sync",
]

HOSTILE = (
    "<script>window.ran = 1</script><img src=x onerror='window.ran = 1'><svg onload='window.ran = 1'>",
    "\u202eevil\u2069\u202d </script><!--<script> \u2028\u2029 \x00\x1b[31m &lt;b&gt; ${window.ran=1} {{7*7}}",
    "a" * 100_000,
)
"""Answers that a page must show and nothing more."""


@pytest.fixture(scope="module")  # playwright's event loop would be in the way of other modules' own
def browser() -> Iterator[Browser]:
    """Debian's chromium; skipped where there is none, unless VTRIUNE_BROWSER_TESTS=1 says that there must be."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        missing = "no chromium for the page's tests: apt-get install chromium"
        if os.environ.get("VTRIUNE_BROWSER_TESTS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=ARGUMENTS)


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page at 1280 x 800 in local time UTC. Any error of its own, any request elsewhere, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, timezone_id="UTC", color_scheme="light")
    page, faults = context.new_page(), list[str]()

    def stay(route: Route) -> None:
        if route.request.url.startswith(("http://127.0.0.1:", "file:///", "data:")):
            route.continue_()
        else:
            faults.append(f"asked for {route.request.url}")
            route.abort()

    def listen(message: ConsoleMessage) -> None:
        # chromium itself reports every reply that is no success, and a server that is gone, as errors
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            faults.append(message.text)

    def fail(error: Error) -> None:
        faults.append(f"{error.message}\n{error.stack}")

    context.route("**/*", stay)
    page.on("console", listen)
    page.on("pageerror", fail)
    yield page
    context.close()
    assert not faults


@pytest.fixture(scope="session")
def judge() -> Iterator[JudgePool]:
    with JudgePool(workers=1) as pool:
        yield pool


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, judge: JudgePool) -> Path:
    """A folder with `playground` data and `runs`: `first` and `second` finished, `broken` damaged."""
    folder = tmp_path_factory.mktemp("world")
    write_playground(folder / "playground", seed=3, train=2, test=2)
    runs = folder / "runs"
    runs.mkdir()
    for seed, name in enumerate(("first", "second")):
        with Writer(runs / name, folder / "playground", judge, seed=seed, texts=HOSTILE) as writer:
            writer.finish()
    shutil.copytree(runs / "first", runs / "broken")
    (runs / "broken" / "run.json").write_text('{"total_steps": "many"}')
    return folder
