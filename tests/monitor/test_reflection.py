import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtriune.monitor.reflection import WORDS, words_in


@pytest.mark.parametrize("word", WORDS)
def test_each_of_the_fifteen_words_is_found_as_a_word_of_its_own(word: str) -> None:
    assert words_in(word) == {word}
    assert word in words_in(f"So, {word}: the answer")
    assert word in words_in(f"<think>{word.upper()}</think>")
    assert not words_in(f"x{word}")
    assert not words_in(f"{word}s")
    assert not words_in(f"{word}_1")


def test_there_are_fifteen_words() -> None:
    assert len(set(WORDS)) == 15


@pytest.mark.parametrize(
    "text", ["", "the waiter", "anyyet", "pre-check", "rechecking", "re-evaluated", "check", "again"]
)
def test_words_inside_other_words_are_not_found(text: str) -> None:
    assert not words_in(text)


@pytest.mark.parametrize(
    "text", ["re-check.", "Re-Think", "re\u2011examine", "re\u2010evaluate", "try\n  again", "wait-and-see"]
)
def test_hyphens_line_breaks_and_capitals_do_not_hide_a_word(text: str) -> None:
    assert len(words_in(text)) == 1


@given(st.lists(st.sampled_from([*WORDS, "re", "-", " ", "again", "x", "\n", "WAIT", ".", "s", "_"]), max_size=8))
def test_the_quick_search_finds_what_the_plain_one_finds(pieces: list[str]) -> None:
    text = "".join(pieces)
    plain = {word for word in WORDS if re.search(rf"\b{word}\b".replace(" ", r"\s+"), text, re.IGNORECASE)}
    assert words_in(text) == plain


@pytest.mark.parametrize("piece", ["re-", "check ", "check", " ", "\n", "wait", "try  ", "-", "re", "yety", "\u2011"])
def test_400_000_characters_of_anything_are_searched(piece: str) -> None:
    # A quadratic search would take hours here: ending at all is the proof.
    text = piece * (400_000 // len(piece))
    assert words_in(text) == words_in("check" + text + "agai") == frozenset()
    assert words_in(text + " wait") == {"wait"}
