"""Cleans transcripts, in this one place: what is trained is what was said, whatever wrote the file."""

from __future__ import annotations

import re
import unicodedata

ZERO_WIDTH_AT_ENDS = "\u200b\u2060\ufeff"
"""Zero-width space, word joiner and byte order mark: they mean nothing at the begin or end of a text. Joiners (U+200C,
U+200D) do: a Malayalam or Sinhala word may end in one."""
BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters without ink whose category is not one of `INVISIBLE`: fillers, and the empty Braille pattern."""
INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Unicode categories of what has no ink: controls, formats, separators."""
VARIATION_SELECTORS = range(0xFE00, 0xFE10)


_TO_CLEAN = re.compile(r"[\x00-\x1f\x7f-\xa0\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]|  |^ | $")
"""Finds control characters, all white space but single spaces between words, and zero-width characters."""
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)])


def clean_transcript(text: str) -> str:
    """A transcript without what can't be heard.

    Unicode form NFC, so that both spellings of a letter make the same labels; every run of white space (line breaks,
    tabs, no-break spaces) is one space; NUL and other control characters are dropped; a text of invisible characters
    only is empty.
    """
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if _TO_CLEAN.search(text):
        text = " ".join(" ".join(text.split()).translate(_CONTROLS).split())
        text = text.strip(ZERO_WIDTH_AT_ENDS + " ")
    return "" if all(map(_is_invisible, text)) else text  # `all` ends at the first character that is visible


def _is_invisible(character: str) -> bool:
    return (
        unicodedata.category(character) in INVISIBLE
        or character in BLANK_LETTERS
        or ord(character) in VARIATION_SELECTORS
    )
