"""R_fmt: is the answer laid out as asked? The paper's score and the released code's two variants; no content."""

from __future__ import annotations


def tag_score(response: str) -> float:
    """R_fmt of eq. 4: 0.25 for each of the four tags that occurs exactly once.

    >>> tag_score("<think>1 + 1</think><answer>2</answer>")
    1.0
    >>> tag_score("<think>1 + 1</think><answer>2</answer> or <answer>3</answer>")
    0.5
    """
    return _quarters(response, ("<think>", "</think>", "<answer>", "</answer>"))


def released_tag_score(response: str) -> float:
    r"""The released code's score for rows verified by math-verify: eq. 4 with line breaks demanded around the tags.

    >>> released_tag_score("<think>\n1 + 1\n</think>\n<answer>\n2\n</answer>")
    1.0
    >>> released_tag_score("<think>1 + 1</think>\n<answer>\n2\n</answer>")
    0.5
    """
    return _quarters(response, ("<think>\n", "\n</think>\n", "\n<answer>\n", "\n</answer>"))


def released_detection_score(response: str, n_boxes: int) -> float:
    r"""The released code's score for detection rows: 1 if the answer tags are there and boxes were read, else 0.

    The opening tag may occur more than once: the released code compares only the count of the closing one with 1.

    >>> released_detection_score("\n<answer>\n[{'bbox_2d': [1, 2, 3, 4], 'label': 'cat'}]\n</answer>", n_boxes=1)
    1.0
    """
    return float("\n<answer>\n" in response and response.count("\n</answer>") == 1 and n_boxes > 0)


def _quarters(response: str, tags: tuple[str, ...]) -> float:
    return sum(0.25 for tag in tags if response.count(tag) == 1)
