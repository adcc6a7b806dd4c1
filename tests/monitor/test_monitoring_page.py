"""docs/monitoring.md tells every figure and every alert that there is, and the limits that hold."""

import re
from pathlib import Path

from vtriune.monitor import alerts
from vtriune.monitor.metrics import FIGURES
from vtriune.verifiers.base import Context
from vtriune.verifiers.detection import Detection, DetectionParams
from vtriune.verifiers.grounding import Grounding, GroundingParams

PAGE = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()


def table(section: str) -> list[tuple[list[str], str]]:
    """The rows of a section's table: the names in the first column, and the second column."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|", text, re.MULTILINE)
    return [(re.findall("`([^`]+)`", names), content) for names, content in rows]


def test_the_page_describes_the_figures_as_the_code_does() -> None:
    assert {name: content for (name,), content in table("Figures of the answers")} == FIGURES


def test_the_page_names_all_that_is_reported_of_boxes() -> None:
    context = Context(preset="modern", split="train", threshold=0.5)
    detection, grounding = Detection(), Grounding()
    params = DetectionParams(), GroundingParams()
    gold = detection.parse_gold('[{"bbox_2d": [0, 0, 9, 9], "label": "cat"}]', params[0], context)
    box = grounding.parse_gold("[0, 0, 9, 9]", params[1], context)
    reported = set(detection.judge("[]", gold, params[0], context).report)
    reported |= set(grounding.judge("[]", box, params[1], context).report)
    named = {name for names, _ in table("Figures that verifiers report") for name in names}
    assert {re.sub(r"^(precision|recall)_\d+", r"\1_<eps>", name) for name in reported} == named


def test_the_page_has_a_row_for_every_alert_with_the_limit_that_holds() -> None:
    limits = {
        "reward_collapsed": "half",
        "evaluation_fell": "three standard errors",
        "gradient_norm": f"> {alerts.GRADIENT:g} x its median over {alerts.GRADIENT_STEPS} earlier",
        "entropy_to_zero": f"< {100 * alerts.ENTROPY_GONE:g} %",
        "entropy_rising": f"> {alerts.ENTROPY_GROWN:g} x",
        "incorrect_longer": f"> {alerts.LONGER:g} x",
        "truncation_rising": f"+ {alerts.TRUNCATED:g}",
        "no_spread": f"in {alerts.SPREADLESS_GROUPS} groups",
        "failed": f"> {100 * alerts.LOST:g} %",
        "unscorable": "the same",
    }
    rows = {name: content for (name, *_), content in table("Alerts")}
    assert rows.keys() == limits.keys() == set(alerts.KINDS)
    for kind, limit in limits.items():
        assert limit in rows[kind]
    assert (alerts.COLLAPSED, alerts.FELL, alerts.NOISE, alerts.CALM) == (0.5, 3, 5, 5)  # written as words
    assert f"last {alerts.WINDOW} steps" in PAGE
