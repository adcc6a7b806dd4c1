"""A plan as the terminal shows it."""

from __future__ import annotations

from rich.console import Group
from rich.table import Table
from rich.text import Text

from vtriune.monitor.table import plain
from vtriune.plan import Plan
from vtriune.plan_formulas import GIB


def plan_page(plan: Plan) -> Group:
    """A plan as the terminal shows it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for title, rows in _sections(plan):
        table.add_row(Text(title, style="bold"), "")
        for name, value in rows:
            table.add_row(Text(f"  {name}"), Text(value))
    shown = [Text.assemble(("problem ", "bold red"), plain(one)) for one in plan.problems]
    shown += [Text.assemble(("note ", "bold yellow"), plain(one)) for one in plan.notes]
    shown += [Text("it fits", style="green")] if plan.fits else []
    head = f"{plan.model}, {'the local engine' if plan.engine == 'local' else 'FSDP2 and a sampling engine'}, on paper"
    return Group(plain(head), table, *shown)


def _sections(plan: Plan) -> list[tuple[str, list[tuple[str, str]]]]:
    def sized(items: dict[str, float]) -> list[tuple[str, str]]:
        return [(name, _bytes(value)) for name, value in items.items() if value]

    def counted(items: dict[str, float]) -> list[tuple[str, str]]:
        return [(name, f"{value:,.0f}" if value == int(value) else f"{value:,.1f}") for name, value in items.items()]

    counts = plan.parameters.items()
    parameters = [(part, f"{count:,}, trained {plan.trained[part]:,}") for part, count in counts]
    limit = f"of {_bytes(plan.limit)}"
    return [
        ("Parameters", parameters),
        ("Memory of a GPU, training", [*sized(plan.training), ("together", f"{_bytes(plan.training_total)} {limit}")]),
        (
            "Memory of a GPU, sampling",
            [
                *sized(plan.sampling),
                ("together", _bytes(plan.sampling_total)),
                ("keys and values of a token", _bytes(plan.kv_bytes_per_token)),
                ("tokens that fit", f"{plan.kv_tokens:,}"),
            ],
        ),
        ("Split of a step", counted(plan.split)),
        ("Pictures in the memory of a node", sized(plan.host)),
        ("Rewards", counted(plan.rewards)),
    ]


def _bytes(value: float) -> str:
    for unit, size in (("GiB", GIB), ("MiB", 2**20)):
        if value >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value / 2**10:,.1f} KiB"
