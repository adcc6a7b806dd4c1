"""`table`: how much of gold's table does the answer have? TEDS and TEDS-structure, of HTML or Markdown.

Trees of tables and their distance are table_tree.py's job, where the answer stands is answers.py's.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from vtriune.verifiers.answers import final_text, tagged
from vtriune.verifiers.base import Context, Outcome, Unscorable
from vtriune.verifiers.format import tag_score
from vtriune.verifiers.table_tree import Node, distance, read_table, without_row_groups, without_text

MAX_GOLD_NODES = 250
MAX_GOLD_TEXT = 20_000
"""Characters of gold's cells together."""
MAX_PAIRS = 250_000
"""Nodes of gold times nodes of the answer."""


class TableParams(BaseModel):
    """Which measure is the value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Literal["teds", "teds_structure"] = "teds"
    """`teds_structure` ignores what the cells say."""


class TableVerifier:
    """TEDS = 1 - d / max(n_pred, n_gold), floored at 0; correct means TEDS = 1.

    d is the edit distance of the two trees of tables, as `read_table` reads them from HTML or Markdown: inserting or
    deleting a node costs 1; renaming one into another tag, colspan or rowspan costs 1, else a cell into a cell the
    Levenshtein distance of their texts / the longer length. n counts nodes but the table itself, as PubTabNet's code
    does. TEDS-structure is the same without texts. thead, tbody and tfoot are nodes if gold has them, else they go
    from the answer, too. Differences to PubTabNet's code: th is td, white space in cells is single, tags in cells (b,
    i, sup) are neither nodes nor text.

    Of the answer (what the last `<answer>` after the last `</think>` holds, or all that follows `</think>`) the first
    table counts, in HTML if there is any. Gold has at most 250 nodes and 20,000 characters. An answer of more than
    250,000 / n_gold nodes is worth 0 with that reason: it has at least 4 times gold's nodes, so that TEDS is below 1/4,
    and 250 times those of a table of 30. Where more than 12,500 pairs of nodes remain to be compared once equal rows
    and cells at both ends are gone, d is the top-down distance, never too small and the same unless rows were split or
    joined, see `distance`. The costliest answer measured takes 1.1 s of CPU time (60 x 15 cells, gold 15 x 15),
    one of gold's own shape with all of its cells wrong 0.3 s at the most.

    Report: `teds`, `teds_structure`, `n_pred`, `n_gold`.

    Source: Zhong et al., arXiv 1911.10683, 5; github.com/ibm-aur-nlp/PubTabNet, src/metric.py.

    >>> verifier, params, context = TableVerifier(), TableParams(), Context(preset="modern", split="train")
    >>> gold = verifier.parse_gold("<table><tr><td>ab</td><td>c</td></tr></table>", params, context)
    >>> outcome = verifier.judge("<table><tr><td>ax</td><td>c</td></tr></table>", gold, params, context)
    >>> round(outcome.accuracy, 4), outcome.report["teds_structure"]  # one letter of two wrong, three nodes
    (0.8333, 1.0)
    """

    name = "table"
    Params = TableParams

    def parse_gold(self, gold: str, params: TableParams, context: Context) -> Node:
        """Gold's tree.

        Raises:
            Unscorable: there is no table with a cell in it, or it is too large.
        """
        content = tagged(gold)
        tree = read_table(gold if content is None else content)
        if tree is None:
            raise Unscorable(f"no table found in gold {gold[:80]!r}; write it in HTML or Markdown")
        if tree.size - 1 > MAX_GOLD_NODES or tree.characters > MAX_GOLD_TEXT:
            raise Unscorable(
                f"gold has {tree.size - 1} nodes and {tree.characters} characters; "
                f"at most {MAX_GOLD_NODES} and {MAX_GOLD_TEXT} can be compared"
            )
        return tree

    def judge(self, response: str, gold: Node, params: TableParams, context: Context) -> Outcome:
        """Compare the answer's table with gold."""
        final = final_text(response)
        content = tagged(final)
        tree = read_table(final if content is None else content)
        if tree is not None and without_row_groups(gold).size == gold.size:
            tree = without_row_groups(tree)
        n_pred, n_gold = (tree.size - 1 if tree else 0), gold.size - 1
        report = {"teds": 0.0, "teds_structure": 0.0, "n_pred": float(n_pred), "n_gold": float(n_gold)}
        if tree is None:
            reason = "no table found in the answer"
        elif n_pred * n_gold > MAX_PAIRS:
            reason = "the answer's table is far larger than gold"
        else:
            reason = "nothing in common with gold"
            most = max(n_pred, n_gold)
            report["teds"] = max(0.0, 1 - distance(tree, gold) / most)
            report["teds_structure"] = max(0.0, 1 - distance(without_text(tree), without_text(gold)) / most)
        accuracy = report[params.value]
        return Outcome(accuracy, tag_score(response), report["teds"] == 1, report, "" if accuracy else reason)
