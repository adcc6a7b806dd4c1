"""Draws the README's pictures of the dashboard: a folder of runs as `vtriune watch` shows it in a browser.

    python docs/dashboard_screenshots.py runs demo docs

Needs chromium (apt-get install chromium). Writes dashboard_{runs,grid,source,rollouts,group}.png, 1280 x 800.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote
from urllib.request import urlopen

import typer
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
COLORS = 255
"""A picture of a page needs no more, and is a third as large."""


def pictured_group(url: str, run: str) -> str:
    """Address of a late group of `detection` whose answers differ, where the run has that source."""
    query = f"run={quote(run)}&source=detection&correct=true&sort=-step&limit=200"
    with urlopen(f"{url}/api/rollouts?{query}") as reply:
        rows = json.load(reply)["rows"]
    row = max(rows, key=lambda one: abs(one["advantage"]))
    return f"/#/group/{quote(run)}/train/sampled/{row['step']}/{row['group']}"


def save(page: Page, path: Path) -> None:
    """Write what the page shows."""
    with Image.open(io.BytesIO(page.screenshot())) as shown:
        shown.convert("RGB").quantize(COLORS).save(path, optimize=True)


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
        assert server.stdout
        url = server.stdout.readline().strip()
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        page.goto(f"{url}/#/rollouts/{quote(run)}")  # begins to read the rollouts
        page.get_by_text("next page").wait_for()
        views = {
            "runs": ("/#/", "table.runs"),
            "grid": (f"/#/run/{quote(run)}", "table.grid"),
            "source": (f"/#/source/{quote(run)}/detection", "figure[data-figure=entropy] canvas"),
            "rollouts": (f"/#/rollouts/{quote(run)}?source=detection&sort=-reward", "table.rollouts"),
            "group": (pictured_group(url, run), ".picture img"),
        }
        for name, (address, sign) in views.items():
            page.goto(url + address)
            page.locator(sign).wait_for()
            page.wait_for_load_state("networkidle")
            save(page, out / f"dashboard_{name}.png")
        server.terminate()


if __name__ == "__main__":
    typer.run(main)
