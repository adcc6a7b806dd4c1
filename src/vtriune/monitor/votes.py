r"""Majority voting among answers: which text an answer stands for, and which text most answers stand for.

Whether it is correct is the verifier's to say; how it reads an answer, which may be more forgiving, is its own matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def voted(response: str) -> str:
    r"""What an answer stands for: after its last `</think>`, in its last `<answer>`, in the last `\boxed{}` of that.

    What is missing is passed over; an answer that never stops thinking stands for nothing. Linear in its length.

    >>> voted(r"<think>3?</think><answer>It is \boxed{\frac{1}{2}}.</answer>"), voted("<think>3"), voted(" cat ")
    ('\\frac{1}{2}', '', 'cat')
    """
    _, closed, final = response.rpartition("</think>")
    if not closed and "<think>" in response:
        return ""
    _, opened, tagged = final.rpartition("<answer>")
    content = tagged.partition("</answer>")[0] if opened else final
    _, boxed, inside = content.rpartition(r"\boxed{")
    return (_up_to_closing_brace(inside) if boxed else content).strip()


def _up_to_closing_brace(text: str) -> str:
    depth = 1
    for brace in _BRACE.finditer(text):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if not depth:
            return text[: brace.start()]
    return text


def most_voted(responses: Sequence[str]) -> list[int]:
    """The positions of all responses that stand for the most frequent text; where several are, those of all of them.

    What stands for nothing has no vote, unless all do.

    >>> most_voted(["4", "5", "<answer>4</answer>", "6"]), most_voted(["4", "5"])
    ([0, 2], [0, 1])
    """
    texts = [voted(response) for response in responses]
    counts = Counter(filter(None, texts) if any(texts) else texts)
    most = max(counts.values())
    return [position for position, text in enumerate(texts) if counts[text] == most]
