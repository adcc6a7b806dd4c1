"""Whether the dashboard stays quick: a run of 100 sources x 10,000 steps and 1,000,000 rollouts, asked as a page asks.

    python -m benchmarks.dashboard                                       # writes some GB, which takes minutes
    python -m benchmarks.dashboard --steps 500 --files 50 --folder /tmp/runs      # smaller; kept, and used again

Rows are written as training writes them (RunStore, its history.bin included), rollout files in the real schema around
rows that the real judge judged. Printed are seconds as a client on the same machine sees them, and the memory of the
server's process, each with its target. Then once more without history.bin, as older runs have none.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.judge import PROGRESS, detection_group

from vtriune.monitor.evaluation import Evaluation, evaluate_metrics, evaluation_figures
from vtriune.monitor.history import FILE
from vtriune.monitor.metrics import source_metrics
from vtriune.monitor.runs import rollout_file
from vtriune.monitor.store import RunStore
from vtriune.reward.judge import JudgeItem, judge_item
from vtriune.types import FinishReason, Group, JudgedGroup, Message, Progress, Rollout, Sample

RARE = "heliotrope"
"""A word that a text search looks for; it is in every 10,000th response or so."""

TEXT_REQUESTS = 10
"""Requests after which a text search is given up: on a slow machine a million texts take minutes."""

WORDS = ("the", "sides", "of", "this", "triangle", "are", "equal", "so", "wait", "verify", "red", "blue", "angles")


def judged(items: list[JudgeItem], source: str, number: int) -> JudgedGroup:
    """Answers with the verdicts of the real judge, as the loop hands them to the store."""
    sample = Sample(
        f"{source}.parquet#{number}", source, source[:5], (Message("user", "How many?"),), (), items[0].spec
    )
    rollouts = tuple(
        Rollout(np.arange(40), np.zeros(40, np.float32), item.response[-200:], FinishReason.STOP, 0.5) for item in items
    )
    verdicts = tuple(judge_item(item) for item in items)
    return JudgedGroup(Group(sample, "How many?", np.arange(9), (), rollouts), verdicts, np.zeros(len(items)))


def groups_of(sources: list[str], each: int) -> list[JudgedGroup]:
    """Some groups of every source: detection, which has the most figures."""
    rng = random.Random(0)
    return [judged(detection_group(rng, "modern"), source, number) for source in sources for number in range(each)]


def write(folder: Path, sources: int, steps: int, files: int, rows: int) -> None:
    """The run: figures of every step, `files` rollout files of `rows` rows, a first and a last evaluation."""
    names = [f"{('chart', 'count', 'dense', 'geome')[number % 4]}_{number:03d}" for number in range(sources)]
    groups = groups_of(names, 2)
    norms = {f"layer_{layer:02d}/grad_norm_llm": 0.0 for layer in range(36)} | {"all/grad_norm": 0.0, "all/loss": 0.0}
    figures = list(source_metrics(groups) | norms)
    print(f"{len(figures)} figures a step, {len(figures) / (sources + 1):.0f} a source", flush=True)
    rng = np.random.default_rng(0)
    with RunStore.create(folder, recipe={}, total_steps=steps, threads=1) as store:
        for step in range(1, steps + 1):
            if step in (1, steps):
                greedy = [replace_answers(group) for group in groups]
                store.write_evaluation(step, groups, greedy, Progress(step, steps, "test"))
            values = rng.random(len(figures), np.float32)
            store.log(step, "train", dict(zip(figures, values.tolist(), strict=True)), {"rollout_s": 1.0})
        store.log(steps, "eval", evaluation_figures(Evaluation(evaluate_metrics(groups), evaluate_metrics(greedy))))
        store.write_rollouts(steps, groups, PROGRESS)
    write_rollouts(folder, np.linspace(1, steps, files, dtype=int).tolist(), rows)


def replace_answers(group: JudgedGroup) -> JudgedGroup:
    """The group with its first answer alone, as a greedy one."""
    first = replace(group.group, rollouts=group.group.rollouts[:1])
    return JudgedGroup(first, group.verdicts[:1], group.advantages[:1])


def write_rollouts(folder: Path, steps: list[int], rows: int) -> None:
    """Files of `rows` rows: those stored of the last step, over and over, with other figures and words."""
    rng = np.random.default_rng(1)
    stored = pq.read_table(rollout_file(folder, "train", max(steps)))
    template = stored.take(pa.array(np.resize(np.arange(stored.num_rows), rows)))
    for step in steps:
        texts = [" ".join(drawn) for drawn in rng.choice(WORDS, (rows, 30))]
        for place in np.flatnonzero(rng.random(rows) < 1e-4):
            texts[place] += f" {RARE}"
        changed = {
            "step": np.full(rows, step),
            "group": (np.arange(rows) // 8).astype(np.int32),
            "answer": (np.arange(rows) % 8).astype(np.int32),
            "reward": rng.random(rows),
            "tokens": rng.integers(1, 2048, rows, np.int32),
            "correct": rng.random(rows) < 0.5,
            "response": texts,
        }
        table = template
        for name, values in changed.items():
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
        pq.write_table(table, rollout_file(folder, "train", step), compression="zstd")


@dataclass
class Server:
    """`vtriune watch` in a process of its own, and a client of it."""

    process: subprocess.Popen[str]
    client: httpx.Client

    def memory(self) -> dict[str, float]:
        """MiB of the process: RSS, PSS, and the highest RSS so far."""
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        text += Path(f"/proc/{self.process.pid}/status").read_text()
        return {name: int(re.search(rf"^{name}:\s+(\d+) kB", text, re.M)[1]) / 1024 for name in ("Rss", "Pss", "VmHWM")}  # type: ignore[index]

    def ask(self, path: str, **asked: Any) -> tuple[float, Any]:
        """Seconds of a request, and its reply."""
        began = time.perf_counter()
        reply = self.client.get(path, params=asked)
        seconds = time.perf_counter() - began
        reply.raise_for_status()
        return seconds, reply.json() if path.startswith("/api/") else None


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server over `root`, from its start to its end."""
    command = [sys.executable, "-m", "vtriune.cli", "watch", str(root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        url = process.stdout.readline().strip()
        with httpx.Client(base_url=url, timeout=600) as client:
            yield Server(process, client)
        process.terminate()


def told(what: str, figure: float, target: float, unit: str = "s") -> None:
    """Print one line."""
    verdict = "" if figure < target else "  MISSED"
    print(f"{what:52}{figure:9.3f} {unit:4} target < {target:g}{verdict}", flush=True)


def ask_figures(server: Server, sources: list[str]) -> None:
    """Ask what the pages of figures ask."""
    told("page", server.ask("/")[0], 1)
    told("list of runs", server.ask("/api/runs")[0], 1)
    seconds, grid = server.ask("/api/grid", run="big")
    if grid["read"]["bytes"] < grid["read"]["of"]:
        raise SystemExit(f"{FILE} does not cover the run: delete the folder, so that it is written anew")
    told("grid, the first time", seconds, 1)
    told("grid, once more", server.ask("/api/grid", run="big")[0], 1)
    for source in ("all", sources[0], sources[1]):
        seconds, names = server.ask("/api/figures", run="big", source=source)
        told(f"figures of {source}", seconds, 1)
        asked = {"run": "big", "source": source}
        told(f"a curve of {source}", server.ask("/api/series", figure=names["train"][0], **asked)[0], 1)
        seconds, curves = server.ask("/api/series", figure=names["train"], **asked)
        told(f"all {len(curves['series'])} curves of {source}", seconds, 1)


def ask_rollouts(server: Server, sources: list[str], steps: int) -> None:
    """Ask what the pages of rollouts ask."""
    began = time.perf_counter()
    seconds, page = server.ask("/api/rollouts", run="big", limit=50)
    told("rollouts, the first time", seconds, 1)
    while page["searched"]["rows"] < page["searched"]["of"]:
        time.sleep(0.2)
        _, page = server.ask("/api/rollouts", run="big", limit=50)
    print(f"{'until all rollouts are known':52}{time.perf_counter() - began:9.3f} s")
    filters: dict[str, dict[str, Any]] = {
        "a source": {"source": sources[1]},
        "a source's wrong answers, best reward first": {"source": sources[1], "correct": "false", "sort": "-reward"},
        "steps, longest first": {"step_from": steps // 3, "step_to": steps // 2, "sort": "-tokens"},
        "a range of rewards": {"reward_from": 0.5, "reward_to": 0.50001},
        "nothing that there is": {"reward_from": 2},
    }
    for name, asked in filters.items():
        seconds, page = server.ask("/api/rollouts", run="big", limit=50, **asked)
        told(f"rollouts of {name} ({page['matching']})", seconds, 1)
    for text in (RARE, "no such word"):
        cursor: dict[str, str] = {}
        began, requests = time.perf_counter(), 0
        while requests < TEXT_REQUESTS:
            seconds, page = server.ask("/api/rollouts", run="big", limit=50, text=text, **cursor)
            if not requests:
                told(f'text "{text}": {len(page["rows"])} found at first', seconds, 1)
            cursor, requests = {"cursor": page["next"]}, requests + 1
            if not page["next"]:
                break
        rate = page["searched"]["rows"] / (time.perf_counter() - began)
        of = page["searched"]["of"]
        print(f"{f'  rows a second, in {requests} requests, of {of}':52}{rate:9.0f}")
    for name in ("/api/rollouts", "/api/group"):
        asked = {"run": "big", "limit": 50} if name == "/api/rollouts" else {"run": "big", "step": steps, "group": 5}
        told(f"{name}, once more", server.ask(name, **asked)[0], 1)


def memory(server: Server) -> None:
    found = server.memory()
    told("memory: PSS", found["Pss"], 500, "MiB")
    told("memory: RSS", found["Rss"], 500, "MiB")
    told("memory: highest RSS so far", found["VmHWM"], 500, "MiB")


def without_history(server: Server) -> None:
    """The first look at a run whose JSON has to be read."""
    began = time.perf_counter()
    seconds, grid = server.ask("/api/grid", run="big")
    told("grid, the first time, of what is read by then", seconds, 1)
    slowest = 0.0
    while grid["read"]["bytes"] < grid["read"]["of"]:
        time.sleep(0.5)
        seconds, grid = server.ask("/api/grid", run="big")
        slowest = max(slowest, seconds)
    told("grid while it is read, the slowest", slowest, 1)
    print(f"{'until all is read':52}{time.perf_counter() - began:9.3f} s")
    told("list of runs", server.ask("/api/runs")[0], 1)
    told("grid, once more", server.ask("/api/grid", run="big")[0], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=100)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=1000, help="rollout files")
    parser.add_argument("--rows", type=int, default=1000, help="rollouts a file")
    parser.add_argument(
        "--folder", type=Path, help="where the run is written, or lies from an earlier time; it is kept"
    )
    asked = parser.parse_args()
    with contextlib.ExitStack() as stack:
        root = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        run = root / "big"
        if not run.exists():
            began = time.perf_counter()
            write(run, asked.sources, asked.steps, asked.files, asked.rows)
            print(f"written in {time.perf_counter() - began:.0f} s")
        sizes = {name: (run / name).stat().st_size / 2**20 for name in ("metrics.jsonl", FILE)}
        print(", ".join(f"{name} {size:.0f} MiB" for name, size in sizes.items()), f"on {os.cpu_count()} cores\n")
        with serving(root) as server:
            _, grid = server.ask("/api/grid", run="big", points=1)
            sources = [row["source"] for row in grid["sources"][1:]]
        with serving(root) as server:
            ask_figures(server, sources)
            memory(server)
            ask_rollouts(server, sources, asked.steps)
            memory(server)
        print(f"\nwithout {FILE}")
        (run / FILE).rename(root / FILE)
        try:
            with serving(root) as server:
                without_history(server)
                memory(server)
        finally:
            (root / FILE).rename(run / FILE)


if __name__ == "__main__":
    main()
