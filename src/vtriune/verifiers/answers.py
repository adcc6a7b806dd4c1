r"""Finding the final answer in a response: after the thinking, inside the tags, inside the box. Linear in its length.

What the answer is worth, and what a box list means, is for the verifiers.
"""

from __future__ import annotations

import re

_BRACES = re.compile(r"\\boxed\s*+\{|\\.|[{}]", re.DOTALL)

_TEXT = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf)\{([^{}\\]*)\}")


def final_text(response: str) -> str:
    """What follows the last `</think>`; the whole response if it does not think, nothing if it never stops thinking.

    Drafts made while thinking are thereby never judged.

    >>> final_text("<think>4? <answer>4</answer></think> <answer>5</answer>")
    ' <answer>5</answer>'
    >>> final_text("<think>4? no")
    ''
    """
    _, closed, rest = response.rpartition("</think>")
    return "" if not closed and "<think>" in response else rest


def final_answer(response: str) -> str:
    r"""What is judged of a response that is asked for a short answer, stripped; empty if there is none.

    Of the final text (see `final_text`) it is what the last `<answer>` holds, or all of it if no tag is there; of that,
    the content of the last `\boxed{}`, or all of it if there is no box. A `\text{}` around the whole goes, too.

    >>> final_answer(r"<think>3?</think><answer>It is \boxed{\text{red}}.</answer>"), final_answer("<think>3")
    ('red', '')
    """
    final = final_text(response)
    content = tagged(final)
    content = final if content is None else content
    inner = boxed(content)
    answer = (content if inner is None else inner).strip()
    wrapped = _TEXT.fullmatch(answer)
    return wrapped.group(1).strip() if wrapped else answer


def tagged(text: str) -> str | None:
    """The content of the last `<answer>`, up to its closing tag or, cut off, to the end; None if there is none.

    >>> tagged("<answer>4</answer> or <answer>5</answer>")
    '5'
    """
    _, opened, rest = text.rpartition("<answer>")
    return rest.partition("</answer>")[0] if opened else None


def boxed(text: str) -> str | None:
    r"""The content of the `\boxed{}` that opens last, braces balanced; None if no box is closed.

    >>> boxed(r"\boxed{3}, no: \boxed{\frac{1}{2}}, that is \boxed{0.")
    '\\frac{1}{2}'
    """
    start = text.find(r"\boxed")
    if start < 0:
        return None
    # Braces before the first box don't matter; backslashes do: behind an odd number of them it is none.
    while start and text[start - 1] == "\\":
        start -= 1
    open_braces: list[int] = []
    last: tuple[int, int] | None = None
    for token in _BRACES.finditer(text, start):
        mark = token.group()
        if mark == "}":
            # A plain brace stands on the stack as -1, a box as where its content starts.
            start = open_braces.pop() if open_braces else -1
            if start >= 0 and (last is None or start > last[0]):
                last = start, token.start()
        elif mark[-1] == "{" and mark[:2] != r"\{":
            open_braces.append(token.end() if mark != "{" else -1)
    return None if last is None else text[last[0] : last[1]]
