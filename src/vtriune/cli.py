"""The command `vtriune`: parses, calls, prints. Nothing is computed here; heavy rooms are imported when needed."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Column, Table
from rich.text import Text

from vtriune.types import ImageSize, Preset, Progress, RewardSpec, Status, UserError, Verdict

if TYPE_CHECKING:
    from vtriune.recipe import Recipe

MAX_LINE = 4_000_000
"""Bytes of one line of a JSONL file; a longer one is refused."""

app = typer.Typer(
    help="One RL to see them all: train a vision-language model on reasoning and perception in one run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
runs_app = typer.Typer(help="Look at runs: finished, running, stopped or damaged.", no_args_is_help=True)
app.add_typer(runs_app, name="runs")


Load = Annotated[list[str] | None, typer.Option(help="A verifier of your own as module:function; may be repeated.")]


def _console() -> Console:
    # Output into a file is 80 columns for rich, which would fold the tables.
    return Console() if sys.stdout.isatty() else Console(width=140)


@app.command()
def train(
    recipe: Annotated[Path | None, typer.Argument(help="A recipe, e.g. recipes/demo.yaml.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes to it, e.g. steps=20 rollout.temperature=0.9 (values are YAML).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; default: runs/<name of the recipe>.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the run in this folder from its last checkpoint; no RECIPE then.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Delete an earlier run in the run folder first.")] = False,
    show: Annotated[
        bool, typer.Option("--print", help="With engine=verl: show what verl is told, and why; nothing is run.")
    ] = False,
) -> None:
    """Train a model as a recipe says, and print what each source learned.

    Everything goes into the run folder: metrics.jsonl, rollouts, TensorBoard files, checkpoints, summary.json.
    Ctrl-C stops after the current step and leaves a run that --resume continues.

    [bold]vtriune train recipes/demo.yaml seed=1 --out runs/demo-1[/bold]
    [bold]vtriune train --resume runs/demo-1[/bold]
    [bold]vtriune train recipes/demo.yaml engine=verl verl.gpus_per_node=8 --print[/bold]
    """
    if (recipe is None) == (resume is None):
        raise UserError(
            "give a RECIPE to start a run, or --resume FOLDER alone to go on with one, by the recipe that lies there"
        )
    if resume is not None and (out is not None or replace):
        raise UserError("--resume goes on with a run where it is; leave out --out and --replace")
    if resume is not None and not (resume / "recipe.yaml").is_file():
        raise UserError(f"{resume}: holds no run (no recipe.yaml); give the folder of one, e.g. runs/demo")

    from vtriune.monitor.table import plain  # noqa: PLC0415
    from vtriune.recipe import load_recipe  # noqa: PLC0415

    if resume is not None:
        loaded, folder = load_recipe(resume / "recipe.yaml"), resume
    elif recipe is not None:
        loaded, folder = load_recipe(recipe, overrides or []), out or Path("runs") / recipe.stem
    console = _console()
    if show:
        if loaded.engine != "verl":
            raise UserError("--print shows what verl is told; add engine=verl")
        console.print(_overrides_table(loaded, folder))
        return

    from vtriune.session import Interrupted  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)])
    run = _engine(loaded)
    try:
        run(loaded, folder, console, resume=resume is not None, replace=replace)
    except Interrupted as stop:
        console.print(plain(str(stop)), soft_wrap=True)
        raise typer.Exit(130) from None
    except KeyboardInterrupt:
        if any(folder.glob("checkpoints/*")):
            again = f"A run goes on from its last checkpoint: vtriune train --resume {folder}"
        else:
            again = "There is no checkpoint yet" + ("; start again with --replace" if folder.exists() else "")
        console.print(plain(f"Stopped at once. {again}"), soft_wrap=True)
        if loaded.engine == "verl":  # its processes have ended; Ray's threads may crash python on its way out
            os._exit(130)
        raise typer.Exit(130) from None


def _engine(recipe: Recipe) -> Callable[..., None]:
    """What runs a recipe."""
    if recipe.engine == "local":
        from vtriune.train import train  # noqa: PLC0415

        return train
    if find_spec("verl") is None:
        raise UserError(
            "engine: verl is not installed here; pip install -e '.[verl]' in a clone of V-Triune, or leave out "
            "engine=verl"
        )
    from vtriune.integrations.verl.main import train as train_on_verl  # noqa: PLC0415

    return train_on_verl


def _overrides_table(recipe: Recipe, folder: Path) -> Table:
    from vtriune.integrations.verl.overrides import hydra_overrides  # noqa: PLC0415

    table = Table(Column("override of verl", overflow="fold"), "from", "reason", box=None, pad_edge=False)
    for one in hydra_overrides(recipe, folder.resolve()):
        table.add_row(*(Text(text) for text in (one.hydra, one.field, one.reason)))
    for text in recipe.verl.overrides:
        table.add_row(Text(text), "verl.overrides", "as given; `train` checks it")
    return table


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.")],
    step: Annotated[int | None, typer.Option(help="The checkpoint after this step; default: the newest.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The checkpoint of the best evaluation (checkpoint.keep_best).")
    ] = False,
) -> None:
    """Write a run's model as an ordinary transformers folder that from_pretrained loads; LoRA adapters are merged.

    A run on verl is read from the shards of its ranks, and has no best checkpoint.

    [bold]vtriune export runs/demo models/demo[/bold]
    [bold]vtriune export runs/demo models/demo-best --best[/bold]
    """
    if best and step is not None:
        raise UserError("--best and --step name two checkpoints; leave one out")
    if not (run / "recipe.yaml").is_file():
        raise UserError(f"{run}: holds no run (no recipe.yaml); give the folder of one, e.g. runs/demo")

    from vtriune.monitor.table import plain  # noqa: PLC0415
    from vtriune.recipe import load_recipe  # noqa: PLC0415

    recipe = load_recipe(run / "recipe.yaml")
    if recipe.engine == "verl":
        from vtriune.integrations.verl import checkpoints as of_verl  # noqa: PLC0415

        if best:
            raise UserError(
                "--best: verl keeps its latest checkpoints only (checkpoint.keep); give one of them by --step"
            )
        checkpoint = of_verl.find_checkpoint(run / "checkpoints", step)
        of_verl.export(recipe.model.lora, checkpoint, out)
    else:
        from vtriune.local.checkpoint import find_checkpoint  # noqa: PLC0415
        from vtriune.local.export import export as write  # noqa: PLC0415

        checkpoint = find_checkpoint(run / "checkpoints", step=step, best=best)
        write(recipe.model, checkpoint, out)
    _console().print(plain(f"{out}: {checkpoint.name} of {run}"), soft_wrap=True)


class _JudgedLine(BaseModel):
    """One line of a JSONL file for `vtriune judge`; names as in the released schema."""

    model_config = ConfigDict(extra="ignore")

    response: str
    ground_truth: str
    verifier: str
    verifier_parm: dict[str, JsonValue] = {}
    accuracy_ratio: float = 1.0
    format_ratio: float = 0.0
    image_size: tuple[int, int] | None = Field(None, description="Width and height in pixels, for absolute boxes.")


@app.command()
def judge(
    file: Annotated[
        Path | None,
        typer.Argument(
            help="JSON Lines with response and ground_truth, and where wanted verifier, verifier_parm, "
            "accuracy_ratio, format_ratio, image_size."
        ),
    ] = None,
    response: Annotated[str | None, typer.Option(help="One answer, instead of a file.")] = None,
    gold: Annotated[str | None, typer.Option(help="Its reference answer.")] = None,
    verifier: Annotated[str, typer.Option(help="For lines that name none.")] = "mathverify",
    parameters: Annotated[str, typer.Option(help="verifier_parm as JSON, for lines that have none.")] = "{}",
    preset: Annotated[Preset, typer.Option(help="Whose definition of the reward.")] = "modern",
    progress: Annotated[
        float | None,
        typer.Option(help="Judge as in training at this progress (0 to 1); default: as a test.", min=0, max=1),
    ] = None,
    load: Load = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON verdict per line instead of a table.")] = False,
) -> None:
    """Try a reward: judge one answer, or a file of answers, against gold.

    [bold]vtriune judge --response 'So it is \\boxed{1/2}.' --gold 0.5[/bold]
    [bold]vtriune judge answers.jsonl --preset official_code --json[/bold]
    """
    from vtriune.reward.judge import JudgeItem  # noqa: PLC0415
    from vtriune.reward.pool import JudgePool  # noqa: PLC0415
    from vtriune.verifiers import registry  # noqa: PLC0415

    try:
        defaults = {"verifier": verifier, "verifier_parm": orjson.loads(parameters)}
    except orjson.JSONDecodeError as error:
        raise UserError(f"--parameters: is not JSON ({error})") from error
    if file is not None and response is None and gold is None:
        lines = _read_lines(file, defaults)
    elif file is None and response is not None and gold is not None:
        lines = [_line({"response": response, "ground_truth": gold}, defaults, "the command line")]
    else:
        raise UserError("give a FILE, or both --response and --gold")
    at = Progress(0, 1, "test") if progress is None else Progress(round(progress * 1e6), 10**6, "train")
    items = [
        JudgeItem(
            line.response,
            RewardSpec(
                line.verifier,
                line.ground_truth,
                line.accuracy_ratio,
                line.format_ratio,
                line.verifier_parm,
                preset,
            ),
            at,
            () if line.image_size is None else (ImageSize(line.image_size, line.image_size),),
        )
        for line in lines
    ]
    for place in load or ():
        registry.register(place)
    with JudgePool(workers=min(2, len(items)), load=load or ()) as pool:
        verdicts = pool.submit(items).result()
    if as_json:
        for verdict in verdicts:
            sys.stdout.write(orjson.dumps(verdict).decode() + "\n")
    else:
        _console().print(_verdict_table(lines, verdicts))
    if any(verdict.status is not Status.SCORED for verdict in verdicts):
        raise typer.Exit(1)


def _read_lines(file: Path, defaults: dict[str, JsonValue]) -> list[_JudgedLine]:
    lines = []
    try:
        with file.open("rb") as stream:
            for number, text in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), start=1):
                where = f"{file} line {number}"
                if len(text) > MAX_LINE:
                    raise UserError(f"{where}: is longer than {MAX_LINE} bytes; no verifier reads so much")
                if text.strip():
                    try:
                        fields = orjson.loads(text)
                    except orjson.JSONDecodeError as error:
                        raise UserError(f"{where}: is not JSON in UTF-8 ({error}); write one object a line") from error
                    lines.append(_line(fields, defaults, where))
    except OSError as error:
        raise UserError(f"{file}: can't be read ({error.strerror}); give a JSON Lines file") from error
    if not lines:
        raise UserError(f"{file}: holds no lines; write one JSON object a line")
    return lines


def _line(fields: object, defaults: dict[str, JsonValue], where: str) -> _JudgedLine:
    if not isinstance(fields, dict):
        raise UserError(f'{where}: is not a JSON object; write {{"response": ..., "ground_truth": ...}}')
    known = _JudgedLine.model_fields
    for key in fields.keys() - known.keys():  # others may be notes of the user's own
        if near := get_close_matches(str(key), known, n=1, cutoff=0.75):
            raise UserError(f'{where}: {key}: unknown key; did you mean "{near[0]}"?')
    try:
        return _JudgedLine.model_validate(defaults | fields)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"]))
        raise UserError(f"{where}: {field}: {problem['msg']}; correct it") from error


def _verdict_table(lines: list[_JudgedLine], verdicts: list[Verdict]) -> Table:
    from vtriune.monitor.table import plain  # noqa: PLC0415

    shown = 50
    table = Table("answer", "gold", "status", "reward", "correct", "parts and reason", expand=False)
    for line, verdict in list(zip(lines, verdicts, strict=True))[:shown]:
        parts = {"accuracy": verdict.accuracy, "format": verdict.format, **verdict.report}
        notes = [f"{name} {value:.3g}" for name, value in parts.items() if value is not None]
        notes += [verdict.reason] if verdict.reason else []
        reward = "" if verdict.reward is None else f"{verdict.reward:.4g}"
        correct = "" if verdict.correct is None else str(verdict.correct)
        cells = (line.response[-60:], line.ground_truth[-40:], verdict.status, reward, correct, ", ".join(notes))
        table.add_row(*(plain(" ".join(cell.split())) for cell in cells))
    counts = Counter(verdict.status.value for verdict in verdicts)
    rewards = [verdict.reward for verdict in verdicts if verdict.reward is not None]
    mean = f", mean reward {sum(rewards) / len(rewards):.4g}" if rewards else ""
    more = f" (the first {shown} shown)" if len(lines) > shown else ""
    table.caption = ", ".join(f"{count} {status}" for status, count in counts.items()) + mean + more
    return table


@app.command()
def rejudge(
    run: Annotated[Path, typer.Argument(help="A run folder; a running one will do.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="A change, as [SOURCE:]key=value, for one source or all; may be repeated. Keys are verifier, "
            "verifier_parm.NAME, accuracy_ratio, format_ratio and preset; values are YAML.",
        ),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Only these steps: A..B, A.., ..B or A.")] = None,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    load: Load = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of tables.")] = False,
) -> None:
    """Judge a run's stored answers again, on this machine.

    Without --set every verdict must be as it is in the log, to the last bit; the first that are not are listed, and
    the exit status is 1, as it is where nothing could be compared. With --set the answers are judged by changed
    settings, and per source it is shown how rewards, groups without spread and the signs of advantages would have been,
    the latter of the answers that are scored both times. Nothing is written.

    A parameter that is set for all sources leaves verifiers alone that have none of that name.

    Of a run folder that somebody sent: verifiers of its recipe's reward.load are code, imported only if --load names
    them again; services in its reward.remotes are sent the answers that the verifier `remote` judges. What is imported
    and who is asked is said before.

    [bold]vtriune rejudge runs/demo[/bold]
    [bold]vtriune rejudge runs/demo --set verifier_parm.iou_threshold=0.5[/bold]
    [bold]vtriune rejudge runs/demo --set detection:format_ratio=0.5 --set preset=paper --steps 100..140[/bold]
    [bold]vtriune rejudge runs/demo --set grounding:verifier=grounding --source grounding --json[/bold]
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn  # noqa: PLC0415
    from rich.progress import Progress as Bars  # noqa: PLC0415

    from vtriune.monitor.table import plain  # noqa: PLC0415
    from vtriune.rejudge import table  # noqa: PLC0415
    from vtriune.rejudge.changes import Change  # noqa: PLC0415
    from vtriune.rejudge.rejudging import Rejudging, read_steps  # noqa: PLC0415

    read = [Change.read(text) for text in changes or ()]
    errors = Console(stderr=True)
    again = Rejudging(
        run,
        read,
        steps=None if steps is None else read_steps(steps),
        source=source,
        load=load or (),
        tell=lambda line: errors.print(plain(line), soft_wrap=True),
    )
    columns = TextColumn("judging"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with again.open_judge() as judges, Bars(*columns, console=errors, transient=True) as bars:
        bar = bars.add_task("", total=again.total)
        result = again.run(judges, lambda count: bars.advance(bar, count))
    if as_json:
        out = orjson.dumps(table.as_json(result, changed=bool(read)), option=orjson.OPT_INDENT_2)
        sys.stdout.write(out.decode() + "\n")
    else:
        _console().print(table.effects(result) if read else table.agreement(result))
    if result.disagree or not (read or result.agree):
        raise typer.Exit(1)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address; others than the loopback want --token-file.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 8192,
    workers: Annotated[int, typer.Option(help="Processes that judge at a time.", min=1)] = 2,
    cpu_limit: Annotated[
        float, typer.Option(help="Seconds of CPU time per answer; beyond it scores 0.", min=0.01)
    ] = 2.0,
    memory_limit: Annotated[int, typer.Option(help="MiB of address space per worker.", min=1024)] = 2048,
    max_body: Annotated[int, typer.Option(help="MiB of a request's body.", min=1)] = 32,
    queue: Annotated[int, typer.Option(help="Answers that may wait; beyond it 429.", min=1)] = 16384,
    deadline: Annotated[float, typer.Option(help="Seconds for a request.", min=0.001)] = 120.0,
    grace: Annotated[float, typer.Option(help="Seconds to finish what is under way at SIGTERM.", min=1)] = 30.0,
    token_file: Annotated[Path | None, typer.Option(help="Clients must know the token in this file.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve others without a token.")] = False,
    judge_preset: Annotated[Preset, typer.Option(help="How POST /judge judges.")] = "official_code",
    silent_zeros: Annotated[
        bool,
        typer.Option("--silent-zeros", help="POST /judge answers errors with a reward of 0, as the released server."),
    ] = False,
    load: Load = None,
    remote: Annotated[
        list[str] | None, typer.Option(help="A service for the verifier `remote`, as name=url; may be repeated.")
    ] = None,
    discovery_dir: Annotated[
        Path | None, typer.Option(help="Write a file JOB/IP:PORT here for the released client (.reward_server).")
    ] = None,
    job: Annotated[str, typer.Option(help="JOB in --discovery-dir.")] = "vtriune",
) -> None:
    """Serve rewards over HTTP: POST /v1/judge for batches, POST /judge for the released training script.

    Ctrl-C or SIGTERM finishes what is under way. The API is described at /docs; docs/reward_service.md is the guide.

    [bold]vtriune serve --workers 8[/bold]
    [bold]vtriune serve --host 0.0.0.0 --token-file token.txt --load my_rewards:concise[/bold]
    """
    from vtriune.reward.pool import AsyncJudgePool  # noqa: PLC0415
    from vtriune.verifiers import registry  # noqa: PLC0415
    from vtriune.verifiers import remote as remote_services  # noqa: PLC0415

    remotes = dict(one.split("=", 1) for one in remote or () if "=" in one)
    if len(remotes) != len(remote or ()):
        raise UserError("--remote: write it as name=url, each name once")
    if "/" in job or job.startswith("."):
        raise UserError(f"--job {job}: is the name of one folder; leave out slashes and leading dots")
    remote_services.configure(remotes)  # an address that is none is an error at once
    for place in load or ():
        registry.register(place)
    try:
        pool = AsyncJudgePool(workers, cpu_limit, memory_limit * 2**20, load=load or (), remotes=remotes)
    except ValueError as error:
        raise UserError(str(error)) from error
    pool.warm_up()

    from vtriune.reward.client import read_token  # noqa: PLC0415 - half a second, in which the workers warm up
    from vtriune.reward.server import serve as run  # noqa: PLC0415
    from vtriune.reward.service import Settings  # noqa: PLC0415

    settings = Settings(
        host=host,
        port=port,
        max_body=max_body * 2**20,
        queue=queue,
        deadline=deadline,
        grace=grace,
        token=read_token(token_file) if token_file else "",
        insecure=insecure,
        judge_preset=judge_preset,
        silent_zeros=silent_zeros,
    )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    discovery = discovery_dir / job if discovery_dir else None
    run(pool, settings, discovery=discovery, announce=lambda url: print(f"serving on {url}", flush=True))


@app.command()
def watch(
    root: Annotated[Path, typer.Argument(help="The folder that holds your runs, or one run.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than the loopback let everybody there look.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.", min=0, max=65535)] = 7860,
) -> None:
    """Look at runs in a browser: figures of every source, alerts, and the very answers with their pictures.

    Serves a page of this machine's own: nothing is loaded from elsewhere, nothing is changed. Ctrl-C ends it.

    Of a run folder that somebody sent nothing is imported or run. For the pictures of its answers the data files are
    opened that its recipe names (base and the paths in data), wherever they lie, and these may name any picture file
    that you may read; whoever sees the page sees them.

    [bold]vtriune watch[/bold]
    [bold]vtriune watch runs/demo --port 0[/bold]
    """
    from vtriune.watch.server import serve as run  # noqa: PLC0415

    run(root, host=host, port=port, announce=lambda url: print(url, flush=True))


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None, typer.Argument(help="The file to write; default: RUN-report.html in this folder.")
    ] = None,
) -> None:
    """Write a run as one HTML file to send to a colleague: tables, curves, and examples with their pictures.

    Examples are groups of training, and held-out samples with the first and the last answer to each. The file opens in
    any browser without a server or a network. Pictures and answers are inside: send it only to those who may see the
    data. What a run folder makes it open is what it makes `vtriune watch` open.

    [bold]vtriune report runs/demo[/bold]
    [bold]vtriune report runs/demo demo.html[/bold]
    """
    from vtriune.monitor.table import plain  # noqa: PLC0415
    from vtriune.watch.report import write_report  # noqa: PLC0415

    if not run.is_dir():
        raise UserError(f"{run}: no such folder; give the folder of a run, e.g. runs/demo")
    written = write_report(run, out or Path(f"{run.resolve().name}-report.html"))
    _console().print(plain(written), soft_wrap=True)


@app.command()
def verifiers(
    name: Annotated[str | None, typer.Argument(help="Show this one, with its parameters; default: list all.")] = None,
    load: Load = None,
    as_json: Annotated[bool, typer.Option("--json", help="Names and JSON Schemas of parameters, as JSON.")] = False,
) -> None:
    """List the verifiers that rows can name, or show one with its definition and parameters.

    [bold]vtriune verifiers detection[/bold]
    [bold]vtriune verifiers --load my_rewards:concise --json[/bold]
    """
    from vtriune.verifiers import describe, registry  # noqa: PLC0415

    for place in load or ():
        registry.register(place)
    shown = registry.names() if name is None else (registry.get(name).name,)
    if as_json:
        described = [{"name": one, "parameters": describe.schema(one)} for one in shown]
        sys.stdout.write(orjson.dumps(described, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _console().print(describe.verifiers_table(shown) if name is None else describe.verifier_page(name))


@app.command()
def plot(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    figure: Annotated[str, typer.Argument(help="fig6, fig7b, fig7c or fig13, as above.")],
    out: Annotated[
        Path | None, typer.Argument(help="The .svg or .png to write; default: <run>-<figure>.svg.", show_default=False)
    ] = None,
    source: Annotated[list[str] | None, typer.Option(help="Only this source; may be repeated.")] = None,
    other: Annotated[list[Path] | None, typer.Option("--run", help="Another run beside it; may be repeated.")] = None,
    step: Annotated[list[int] | None, typer.Option(help="Of fig7c: only this step; may be repeated.")] = None,
) -> None:
    """Draw one of the paper's figures about monitoring from a run.

    [bold]fig6[/bold]: accuracy reward and eps of box sources; share of boxes that reach IoU 0.50, 0.75, 0.95, 0.99.
    [bold]fig7b[/bold]: norm of the whole gradient, and of each part's.
    [bold]fig7c[/bold]: norm of each layer's gradient, mean over the steps or at each --step; first layer / last layer.
    [bold]fig13[/bold]: per source: reward, response length, reflection, correct among reflecting, truncation.

    [bold]vtriune plot runs/demo fig13 --source math --source detection[/bold]
    [bold]vtriune plot runs/joint fig7b fig7b.png --run runs/language_only[/bold]
    """
    from vtriune.monitor.plots import plot as draw  # noqa: PLC0415
    from vtriune.monitor.table import plain  # noqa: PLC0415
    from vtriune.verifiers.registry import eps  # noqa: PLC0415

    out = out or Path(f"{run.resolve().name}-{figure}.svg")
    draw(figure, [run, *(other or ())], out, sources=source or (), steps=step or (), eps=eps)
    _console().print(plain(f"{out}: {figure} of {run}"), soft_wrap=True)


@app.command()
def plan(
    recipe: Annotated[Path, typer.Argument(help="A recipe, e.g. recipes/orsta-7b.yaml.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it, as for train.")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="In all; default: as the recipe's section verl, else 1.", min=1)
    ] = None,
    gpu_memory: Annotated[float, typer.Option(help="GiB of each.", min=1, max=10_000)] = 80,
    nodes: Annotated[
        int | None, typer.Option(help="Machines they are in; default: 8 GPUs to a machine.", min=1)
    ] = None,
    tensor_parallel: Annotated[
        int | None,
        typer.Option(help="GPUs that share a sampling engine's weights; default: verl.tensor_parallel.", min=1),
    ] = None,
    sampling_share: Annotated[
        float, typer.Option(help="Share of a GPU that the sampling engine may fill.", min=0.05, max=0.95)
    ] = 0.5,
    text_tokens: Annotated[int, typer.Option(help="Of a prompt, without pictures.", min=1)] = 256,
    picture_tokens: Annotated[int, typer.Option(help="Of a prompt's pictures.", min=0)] = 1280,
    sampling_seconds: Annotated[
        float, typer.Option(help="Of one step; decides how many judges keep up.", min=0.1)
    ] = 60,
    model_config: Annotated[
        str | None,
        typer.Option(help="A config.json, or qwen2.5-vl-7b or qwen2.5-vl-32b; default: that of model.path."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Bytes and counts as JSON.")] = False,
) -> None:
    """Say on paper what a recipe needs: memory of a GPU, the split of a step, pictures, judges. Nothing is loaded.

    docs/plan.md has the formulas, and what they were checked against. Exits with 1 if something won't fit.

    [bold]vtriune plan recipes/orsta-7b.yaml --gpu-memory 96[/bold]
    [bold]vtriune plan recipes/orsta-32b.yaml verl.tensor_parallel=2 --gpus 32 --gpu-memory 80 --json[/bold]
    """
    from vtriune.plan import find_shape, machines_of, make_plan  # noqa: PLC0415
    from vtriune.plan_formulas import Load as PromptLoad  # noqa: PLC0415
    from vtriune.plan_page import plan_page  # noqa: PLC0415
    from vtriune.recipe import load_recipe  # noqa: PLC0415

    loaded = load_recipe(recipe, overrides or [])
    model, shape = find_shape(loaded.model.path, model_config)
    machines = machines_of(
        loaded, gpu_memory, share=sampling_share, gpus=gpus, nodes=nodes, tensor_parallel=tensor_parallel
    )
    made = make_plan(loaded, shape, machines, PromptLoad(text_tokens, picture_tokens, sampling_seconds), model)
    if as_json:
        sys.stdout.write(orjson.dumps(made, option=orjson.OPT_INDENT_2).decode() + "\n")
    else:
        _console().print(plan_page(made), soft_wrap=True)
    if not made.fits:
        raise typer.Exit(1)


@runs_app.command("list")
def runs_list(root: Annotated[Path, typer.Argument(help="Where to look for run folders.")] = Path("runs")) -> None:
    """List all runs below a folder, the latest first."""
    from vtriune.monitor.table import runs_table  # noqa: PLC0415

    _console().print(runs_table(root))


@runs_app.command("show")
def runs_show(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Show a run: where it stands, the latest figures per source, what was set aside, before and after."""
    from vtriune.monitor.table import run_page  # noqa: PLC0415

    _console().print(run_page(run))


def main() -> None:
    """Entry point: errors that the user can mend are one message, without a traceback."""
    try:
        app()
    except UserError as error:
        from vtriune.monitor.table import plain  # noqa: PLC0415

        text = Text("\n").join(plain(line) for line in str(error).splitlines())
        Console(stderr=True).print(Text.assemble(("error ", "bold red"), text), soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
