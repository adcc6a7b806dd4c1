r"""The embedded engine beside TRL's GRPOTrainer on the same random model, and how it scales.

    python -m benchmarks.engine --setup                    # once: makes .venv-engine (some minutes)
    .venv-engine/bin/python -m benchmarks.engine           # about 15 minutes on two quiet cores
    .venv-engine/bin/python -m benchmarks.engine --device cuda --size large --sides 896

Prints, for pictures of about 25, 256 and 1,024 tokens: seconds a step and its parts, tokens per second, peak memory and
the ratio to TRL; each target, met or missed; then our seconds against the number of prompts and of answers. TRL samples
with plain transformers (no vLLM) and is run in two ways: all answers of a step in one batch, and one prompt's at a time
with gradients added up. Each measurement is a process of its own, the median of some steps after one to warm up.
All figures go to runs/engine.json, the scaling to docs/engine_scaling.svg. It never fails for a missed target.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.engine.work import PARTS, Cell, Result, System

ROOT = Path(__file__).parents[2]
SIDES = (140, 448, 896)
SYSTEMS: tuple[System, ...] = ("ours", "trl", "trl by prompt")
COUNTS = (2, 4, 8, 16, 32)
SPEED_TARGETS = {25: 2.0, 256: 4.0, 1024: 8.0}
MEMORY_TARGET = 3.0
"""TRL's peak over ours, with the largest pictures."""

Cells = dict[tuple[int, System], Result]


class CellError(Exception):
    """A measurement that gave no result, e.g. for lack of memory."""


def set_up() -> None:
    """Make .venv-engine. torch goes first and alone, by exact version, as in the Makefile."""
    folder = ROOT / ".venv-engine"
    venv.create(folder, with_pip=True)
    environment = os.environ | {"PIP_CONSTRAINT": str(ROOT / "constraints.txt")}
    for what in (["torch==2.13.0"], ["--editable", "."], ["-r", "benchmarks/engine/requirements.txt"]):
        command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *what]
        subprocess.run(command, cwd=ROOT, env=environment, check=True)
    print(f"{folder} is ready")


def in_child(task: str, argument: dict[str, Any], threads: int) -> str:
    """What `--child TASK` prints in a fresh process, whose memory is then its own.

    Raises:
        CellError: the process ended with an error.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",  # threads that spin would be measured against whatever else runs
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, "-m", "benchmarks.engine", "--child", task, json.dumps(argument)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)
    if run.returncode:
        lines = run.stderr.strip().splitlines() or [f"exit status {run.returncode}"]
        raise CellError(lines[-1][:300])
    return run.stdout.splitlines()[-1]


def child(task: str, argument: dict[str, Any]) -> None:
    """The other side of `in_child`."""
    if task == "model":
        import torch  # noqa: PLC0415 - only children load it
        from benchmarks.engine import models  # noqa: PLC0415

        sizes = {"tiny": models.TINY, "large": models.LARGE, "reduced": models.reduced(models.LARGE)}
        dtype = torch.bfloat16 if argument["size"] == "large" else torch.float32
        models.write_model(Path(argument["folder"]), sizes[argument["size"]], dtype, argument["device"])
        print("{}")
    elif task == "peak":
        from benchmarks.engine.peak import matrix_rate  # noqa: PLC0415

        print(matrix_rate(**argument))
    elif task == "cells":
        from benchmarks.engine.ours import measure  # noqa: PLC0415

        print([measure(Cell(**fields)).seconds("step") for fields in argument["cells"]])
    else:
        cell = Cell(**argument)
        if cell.system == "ours":
            from benchmarks.engine.ours import measure  # noqa: PLC0415
        else:
            from benchmarks.engine.peer import measure  # noqa: PLC0415
        print(measure(cell).to_json())


def measured(cell: Cell) -> Result:
    """Raises CellError."""
    return Result.from_json(in_child("cell", asdict(cell), cell.threads))


def compare(base: Cell, sides: list[int], systems: list[System]) -> Cells:
    """Measure every system at every size and print its line."""
    print(f"{'image tokens':>13} {'system':14}{'s/step':>9}{'(min-max)':>15}", end="")
    print("".join(f"{part:>10}" for part in PARTS) + f"{'other':>8}{'tokens/s':>10}{'peak MiB':>10}{'grown by':>10}")
    found: Cells = {}
    for side in sides:
        for system in systems:
            cell = replace(base, system=system, side=side)
            try:
                one = measured(cell)
            except CellError as error:
                print(f"{cell.image_tokens:13} {system:14}failed: {error}", flush=True)
                continue
            found[cell.image_tokens, system] = one
            parts = [one.seconds(part) for part in PARTS]
            other = statistics.median(step["step"] - sum(step[part] for part in PARTS) for step in one.steps)
            speed = one.answer_tokens[0] / one.seconds("step")
            print(
                f"{cell.image_tokens:13} {system:14}{one.seconds('step'):9.2f}{one.spread:>15}"
                + "".join(f"{seconds:10.2f}" for seconds in parts)
                + f"{other:8.2f}{speed:10.0f}{one.peak:10.0f}{one.peak - one.loaded:10.0f}",
                flush=True,
            )
    return found


def same_work(found: Cells, base: Cell) -> None:
    """Say whether all systems had the same prompts and sampled equally much."""
    full = base.prompts * base.group * base.new_tokens
    for tokens in dict.fromkeys(tokens for tokens, _ in found):
        prompts = {one.prompt_tokens for (size, _), one in found.items() if size == tokens}
        answers = {count for (size, _), one in found.items() if size == tokens for count in one.answer_tokens}
        verdict = "same work" if len(prompts) == 1 and answers == {full} else "NOT THE SAME WORK"
        print(f"  {tokens:5} image tokens: prompts of {sorted(prompts)}, answers of {sorted(answers)}: {verdict}")


def ratios(found: Cells) -> None:
    """TRL over ours, part by part, and the targets. Targets hold against the faster way of running TRL."""
    lines = []
    for tokens in dict.fromkeys(tokens for tokens, _ in found):
        ours = found.get((tokens, "ours"))
        rivals = {system: one for (size, system), one in found.items() if size == tokens and system != "ours"}
        if ours is None or not rivals:
            continue
        for system, one in rivals.items():
            parts = {"step": "step", "sampling": "sampling", "update": "update"}
            shown = ", ".join(f"{name} {one.seconds(part) / ours.seconds(part):.2f}x" for name, part in parts.items())
            grown = (one.peak - one.loaded) / (ours.peak - ours.loaded)
            print(f"  {tokens:5} {system:14}{shown}, peak {one.peak / ours.peak:.2f}x, grown {grown:.2f}x")
        fastest = min(rivals, key=lambda system: rivals[system].seconds("step"))
        if target := SPEED_TARGETS.get(tokens):
            ratio = rivals[fastest].seconds("step") / ours.seconds("step")
            lines.append(_target(f"step at {tokens} image tokens, against {fastest!r}", ratio, target))
        if tokens == max(SPEED_TARGETS):
            for system, one in rivals.items():
                lines.append(
                    _target(f"peak memory at {tokens}, against {system!r}", one.peak / ours.peak, MEMORY_TARGET)
                )
    print("\nTargets (the step: against the faster way of running TRL)")
    print("\n".join(lines) or "  none measured")


def _target(what: str, ratio: float, target: float) -> str:
    return f"  {what:60}{ratio:7.2f}x, at least {target:.0f}x: {'met' if ratio >= target else 'MISSED'}"


def scaling(base: Cell, side: int, counts: list[int]) -> dict[str, dict[int, float]]:
    """Our seconds a step against the number of prompts, and of answers to each; the rest as in `base`."""
    ways: dict[str, Callable[[int], Cell]] = {
        "prompts": lambda count: replace(base, system="ours", side=side, prompts=count),
        "responses per prompt": lambda count: replace(base, system="ours", side=side, group=count),
    }
    cells = [asdict(cell(count)) for cell in ways.values() for count in counts]
    seconds = iter(json.loads(in_child("cells", {"cells": cells}, base.threads)))
    curves = {name: {count: next(seconds) for count in counts} for name in ways}
    for name in ways:
        slope, start = line(curves[name])
        worst = max(abs(taken / (start + slope * count) - 1) for count, taken in curves[name].items())
        shown = ", ".join(f"{count}: {taken:.2f}" for count, taken in curves[name].items())
        print(f"  seconds by {name}: {shown}")
        print(f"    {start:.2f} s + {slope:.3f} s each; furthest from that line {worst:.0%}", flush=True)
    return curves


def line(curve: dict[int, float]) -> tuple[float, float]:
    """Slope and start of the line with the least relative squared error.

    >>> slope, start = line({2: 3.0, 4: 5.0, 8: 9.0})
    >>> round(slope, 6), round(start, 6)
    (1.0, 1.0)
    """
    weights = {count: seconds**-2 for count, seconds in curve.items()}
    total = sum(weights.values())
    x = sum(weights[count] * count for count in curve) / total
    y = sum(weights[count] * seconds for count, seconds in curve.items()) / total
    above = sum(weights[count] * (count - x) * (seconds - y) for count, seconds in curve.items())
    slope = above / sum(weights[count] * (count - x) ** 2 for count in curve)
    return slope, y - slope * x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true", help="make .venv-engine and stop")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--size", choices=("tiny", "large", "reduced"), default="tiny", help="large: Qwen2.5-VL-3B's")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="of the pictures in pixels")
    parser.add_argument("--systems", choices=SYSTEMS, nargs="+", default=list(SYSTEMS))
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="answers per prompt")
    parser.add_argument("--new-tokens", type=int, default=64, help="per answer")
    parser.add_argument("--steps", type=int, default=3, help="measured, after one to warm up")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations, on both sides")
    parser.add_argument("--scaling", type=int, nargs="*", default=list(COUNTS), help="counts to try; nothing: skip")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "engine.json")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "engine_scaling.svg")
    options = parser.parse_args()
    if options.setup:
        set_up()
    elif options.child:
        child(options.child[0], json.loads(options.child[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(options, folder)


def run(options: argparse.Namespace, folder: str) -> None:
    """Everything in turn, on a model in `folder`."""
    names = ["torch", "transformers", *(["trl"] if options.systems != ["ours"] else [])]
    print(", ".join(f"{name} {metadata.version(name)}" for name in names), end="; ")
    print(f"Python {platform.python_version()}, {options.device}, {options.threads} threads of {os.cpu_count()}")
    print(
        f"load average at the start {os.getloadavg()[0]:.1f}; with anything else running the figures are worth little"
    )
    base = Cell(
        "ours", folder, 0, options.prompts, options.group, options.new_tokens, options.steps,
        device=options.device, threads=options.threads, checkpointing=options.checkpointing,
    )  # fmt: skip
    print(
        f"{options.size} random Qwen2.5-VL, vision frozen; {base.prompts} prompts x {base.group} answers x "
        f"{base.new_tokens} tokens, temperature 1; {'bfloat16 autocast' if base.device == 'cuda' else 'float32'}; "
        f"ours: tokens_per_batch {base.tokens_per_batch} at every size; medians of {base.steps} steps"
    )
    in_child("model", {"folder": folder, "size": options.size, "device": options.device}, options.threads)
    found = compare(base, options.sides, options.systems)
    same_work(found, base)
    print("\nTRL over ours")
    ratios(found)
    results = [{"image_tokens": key[0], "system": key[1], **asdict(one)} for key, one in found.items()]
    print("\nShare of the peak matrix rate that our update reaches")
    shares = matrix_share(base, found)
    curves: dict[str, dict[int, float]] = {}
    if options.scaling:
        side = options.sides[len(options.sides) // 2]
        print(f"\nOurs against the number of prompts and of answers, {(side // 28) ** 2} image tokens")
        curves = scaling(base, side, options.scaling)
        from benchmarks.engine.figure import draw  # noqa: PLC0415 - the children don't load matplotlib

        draw(curves, {name: line(curve) for name, curve in curves.items()}, options.figure)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = {"cell": asdict(base), "results": results, "matrix_share": shares, "scaling": curves}
    options.out.write_text(json.dumps(report, indent=1))


def matrix_share(base: Cell, found: Cells) -> dict[int, float]:
    """6 x parameters x tokens (each prompt once) per second of the update, over a large product's rate."""
    dtype = "bfloat16" if base.device == "cuda" else "float32"
    peak = float(in_child("peak", {"device": base.device, "dtype": dtype, "threads": base.threads}, base.threads))
    print(f"  a large {dtype} product on {base.device}: {peak / 1e12:.2f} TFLOP/s")
    if base.device == "cpu":
        print("  (the target is for a GPU with the large model, --device cuda --size large; not run here)")
    shares: dict[int, float] = {}
    for (tokens, system), one in found.items():
        if system == "ours" and one.flops:
            shares[tokens] = one.flops / one.seconds("update") / peak
            work = f"{one.flops / 1e12:.3f} TFLOP in an update"
            print(f"  {tokens:5} image tokens: {work}, {shares[tokens]:.1%} of the peak")
    return shares


if __name__ == "__main__":
    main()
