"""Draws the README's pictures of the dashboard: a folder of runs as `vtriune watch` shows it in a browser.

    python docs/dashboard_screenshots.py runs demo docs

Needs chromium (apt-get install chromium). Writes dashboard_{grid,source,rollouts,group}.png, 1280 x 800.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from urllib.request import urlopen

import typer
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
COLORS = 255
"""A picture of a page needs no more, and is a third as large."""


def pictured_group(url: str, run: str) -> str:
    """Address of a late group of `detection` with several boxes of gold, whose answers overlap them more or less."""

    def ask(path: str, **query: str | int) -> dict[str, Any]:
        with urlopen(f"{url}/api/{path}?{urlencode({'run': run, **query})}") as reply:
            answer: dict[str, Any] = json.load(reply)
            return answer

    rows = ask("rollouts", source="detection", sort="-step", limit=200)["rows"]
    places = sorted({(row["step"], row["group"]) for row in rows}, reverse=True)
    groups = [ask("group", split="train", decoding="sampled", step=step, group=group) for step, group in places]

    def interest(group: dict[str, Any]) -> tuple[int, int]:
        overlaps = {shape["iou"] for answer in group["answers"] for shape in answer["shapes"]}
        return min(2, len(group["gold_shapes"])), len(overlaps)

    best = max(groups, key=interest)
    answer = max(best["answers"], key=lambda one: sum(0 < (shape["iou"] or 0) < 1 for shape in one["shapes"]))
    return f"/#/group/{quote(run)}/train/sampled/{best['step']}/{best['group']}?answer={answer['answer']}"


def save(page: Page, path: Path) -> None:
    """Write what the page shows."""
    with Image.open(io.BytesIO(page.screenshot())) as shown:
        shown.convert("RGB").quantize(COLORS).save(path, optimize=True)


def draw(page: Page, url: str, run: str, out: Path) -> None:
    """Draw every view of the dashboard at `url`."""
    page.goto(f"{url}/#/rollouts/{quote(run)}")  # begins to read the rollouts
    page.get_by_text("next page").wait_for()
    views = {
        "grid": (f"/#/run/{quote(run)}", "table.grid"),
        "source": (f"/#/source/{quote(run)}/detection", "figure[data-figure=entropy] canvas"),
        "rollouts": (f"/#/rollouts/{quote(run)}?source=detection&sort=-reward", "table.rollouts"),
        "group": (pictured_group(url, run), ".picture img"),
    }
    for name, (address, sign) in views.items():
        page.goto(url + address)
        page.locator(sign).wait_for()
        for image in page.locator("img").all():
            expect(image).to_have_js_property("complete", True)
        page.wait_for_load_state("networkidle")
        save(page, out / f"dashboard_{name}.png")


def main(
    runs: Annotated[Path, typer.Argument(help="A folder of runs.")],
    run: Annotated[str, typer.Argument(help="The run in it to open.")],
    out: Annotated[Path, typer.Argument(help="The folder to write to.")],
) -> None:
    """Draw the pictures of a folder of runs."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium: apt-get install chromium")
    command = [sys.executable, "-m", "vtriune.cli", "watch", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        try:
            assert server.stdout
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
            draw(page, server.stdout.readline().strip(), run, out)
        finally:
            server.terminate()


if __name__ == "__main__":
    typer.run(main)
