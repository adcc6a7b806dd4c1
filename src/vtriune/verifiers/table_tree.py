"""Tables as trees: read from HTML or Markdown, and the edit distance of two of them.

What the distance is worth, and how large a table may be, is table.py's to say. Distances in general are apted's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from vtriune.verifiers.item_text import nfc

EXACT_PAIRS = 12_500
"""Up to so many pairs of nodes apted computes the distance; above it is the top-down one."""

_ROW_GROUPS = ("thead", "tbody", "tfoot")
_BREAK = re.compile(r"<br\s{0,9}/?>", re.IGNORECASE)
_TABLE = re.compile("<table", re.IGNORECASE)
_BAR = re.compile(r"(?<!\\)\|")
_RULE = re.compile(r":?-+:?")
_SPAN = re.compile(r"\s{0,9}0{0,9}([1-9]\d{0,3})\s{0,9}")


@dataclass(frozen=True, slots=True)
class Node:
    """A table, a group of rows, a row or a cell: at most four levels."""

    label: tuple[str, str, str]
    """Tag, colspan and rowspan."""
    text: str
    children: tuple[Node, ...]
    size: int
    """Nodes of this tree, this one included."""
    characters: int
    """Of all its cells."""


def _node(tag: str, children: Iterable[Node] = (), text: str = "", colspan: str = "1", rowspan: str = "1") -> Node:
    below = tuple(children)
    size = 1 + sum(child.size for child in below)
    return Node((tag, colspan, rowspan), text, below, size, len(text) + sum(child.characters for child in below))


def read_table(text: str) -> Node | None:
    """The first HTML table of a text, or else its first Markdown table; None if there is none with a cell.

    HTML: table > (thead | tbody | tfoot) > tr > (td | th), whatever else stands there is left out; th is td; a cell's
    text is all text in it. A span that is no number from 1 to 9999 is 1. Markdown: a row with bars, a rule (`---|---`),
    further rows with bars, cells as written; the first row is a thead, the others a tbody.

    >>> tree = read_table("| a | b |\\n|---|---|\\n| 1 | 2 |")
    >>> tree.size, [cell.text for row in without_row_groups(tree).children for cell in row.children]
    (9, ['a', 'b', '1', '2'])
    """
    html = _TABLE.search(text)
    tree = _html_table(text[html.start() :]) if html else _markdown_table(text)
    return tree if tree and any(row.children for row in without_row_groups(tree).children) else None


def without_row_groups(table: Node) -> Node:
    """The same rows, directly in the table."""
    rows: list[Node] = []
    for child in table.children:
        rows += child.children if child.label[0] in _ROW_GROUPS else (child,)
    return _node("table", rows)


def without_text(node: Node) -> Node:
    """The same structure, all cells empty."""
    return replace(node, text="", children=tuple(map(without_text, node.children)))


def distance(a: Node, b: Node) -> float:
    """The tree edit distance with PubTabNet's costs, or for large tables one that is never smaller.

    Equal subtrees at both ends of equal parents are left out first: with costs of 1 for inserting and deleting that
    changes no distance (whatever an optimal mapping does with such a pair, mapping it onto itself costs no more).
    Then apted computes it up to EXACT_PAIRS pairs of nodes; measured with all cells different, for two tables of 5 x 5,
    10 x 10, 20 x 10 cells it takes 0.02, 0.26, 1.1 s of CPU time, for one column of 200 5.6 s, which no worker may
    spend. Above, it is the least cost of inserting and deleting only whole subtrees (Selkow 1977, the top-down
    distance), 0.05 s for 20 x 10: where no row was split or joined that is the same. Row groups may also go one by one.
    """
    cost = cache(_text_distance)
    trimmed = _trim((a,), (b,))
    rest_a, rest_b = (_node("rest", rest) for rest in trimmed)
    if rest_a.size == 1 or rest_b.size == 1:
        return float(rest_a.size + rest_b.size - 2)
    if rest_a.size * rest_b.size <= EXACT_PAIRS:
        return _exact(rest_a, rest_b, cost)
    flat_a, flat_b = without_row_groups(a), without_row_groups(b)
    groups = a.size - flat_a.size + b.size - flat_b.size
    top_down = _top_down(rest_a, rest_b, cost)
    return min(top_down, groups + _top_down(flat_a, flat_b, cost)) if groups else top_down


def _html_table(text: str) -> Node | None:
    from lxml import etree, html  # noqa: PLC0415

    parser = html.HTMLParser(encoding="utf-8", remove_comments=True, remove_pis=True, no_network=True)
    try:
        table = html.document_fromstring(_BREAK.sub(" ", text).encode(), parser).find(".//table")
    except etree.LxmlError:
        return None
    if table is None:
        return None

    def row(tr: Any) -> Node:
        return _node("tr", (cell(td) for td in tr if td.tag in ("td", "th")))

    def cell(td: Any) -> Node:
        spans = (_SPAN.fullmatch(td.get(name, "")) for name in ("colspan", "rowspan"))
        colspan, rowspan = (span[1] if span else "1" for span in spans)
        return _node("td", (), _plain("".join(td.itertext())), colspan, rowspan)

    parts: list[Node] = []
    for child in table:
        if child.tag == "tr":
            parts.append(row(child))
        elif child.tag in _ROW_GROUPS:
            parts.append(_node(child.tag, (row(tr) for tr in child if tr.tag == "tr")))
    return _node("table", parts)


def _markdown_table(text: str) -> Node | None:
    lines = [line.strip() for line in text.splitlines()]
    for n, line in enumerate(lines[1:]):
        if "|" in lines[n] and "|" in line and all(_RULE.fullmatch(part) for part in _cells(line)):
            head, rows = _markdown_row(lines[n]), []
            for below in lines[n + 2 :]:
                if "|" not in below:
                    break
                rows.append(_markdown_row(below))
            return _node("table", [_node("thead", [head]), _node("tbody", rows)])
    return None


def _markdown_row(line: str) -> Node:
    return _node("tr", [_node("td", text=_plain(part.replace(r"\|", "|"))) for part in _cells(line)])


def _cells(line: str) -> list[str]:
    return [part.strip() for part in _BAR.split(line.removeprefix("|").removesuffix("|"))]


def _plain(text: str) -> str:
    return " ".join(nfc(text).split())


def _trim(a: tuple[Node, ...], b: tuple[Node, ...]) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """Two forests without what they have in common at both ends."""
    while True:
        shorter = min(len(a), len(b))
        start = next((n for n in range(shorter) if a[n] != b[n]), shorter)
        a, b, shorter = a[start:], b[start:], shorter - start
        end = next((n for n in range(shorter) if a[-1 - n] != b[-1 - n]), shorter)
        a, b = a[: len(a) - end], b[: len(b) - end]
        if not (len(a) == len(b) == 1 and (a[0].label, a[0].text) == (b[0].label, b[0].text)):
            return a, b
        a, b = a[0].children, b[0].children


def _text_distance(a: str, b: str) -> float:
    from rapidfuzz.distance import Levenshtein  # noqa: PLC0415

    return Levenshtein.normalized_distance(a, b)


def _exact(a: Node, b: Node, cost: Callable[[str, str], float]) -> float:
    from apted import APTED, Config  # noqa: PLC0415

    class Costs(Config):  # type: ignore[misc]
        valuecls = float

        def children(self, node: Node) -> tuple[Node, ...]:
            return node.children

        def rename(self, node1: Node, node2: Node) -> float:
            return 1.0 if node1.label != node2.label else cost(node1.text, node2.text)

    return float(APTED(a, b, Costs()).compute_edit_distance())


def _top_down(a: Node, b: Node, cost: Callable[[str, str], float]) -> float:
    renamed = 1.0 if a.label != b.label else cost(a.text, b.text)
    before = [0.0]
    for y in b.children:
        before.append(before[-1] + y.size)
    for x in a.children:
        here = [before[0] + x.size]
        for n, y in enumerate(b.children):
            here.append(min(before[n + 1] + x.size, here[n] + y.size, before[n] + _top_down(x, y, cost)))
        before = here
    return renamed + before[-1]
