"""Cleans transcripts, in this one place: what is trained is what was said, whatever wrote the file."""

from __future__ import annotations

import unicodedata

ZERO_WIDTH_AT_ENDS = "\u200b\u2060\ufeff"
"""Zero-width space, word joiner and byte order mark: they mean nothing at the begin or end of a text. Joiners (U+200C,
U+200D) do: a Malayalam or Sinhala word may end in one."""
BLANK_LETTERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Characters without ink whose category is not one of `INVISIBLE`: fillers, and the empty Braille pattern."""
INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Unicode categories of what has no ink: controls, formats, separators."""
VARIATION_SELECTORS = range(0xFE00, 0xFE10)


def clean_transcript(text: str) -> str:
    """A transcript without what can't be heard.

    Unicode form NFC, so that both spellings of a letter make the same labels; every run of white space (line breaks,
    tabs, no-break spaces) is one space; NUL and other control characters are dropped; a text of invisible characters
    only is empty.
    """
    if text.isascii() and text.isprintable():  # no control characters; most texts in Latin letters end here
        return " ".join(text.split()) if "  " in text else text.strip()
    text = " ".join(unicodedata.normalize("NFC", text).split())
    if any(unicodedata.category(character) == "Cc" for character in text):
        text = "".join(character for character in text if unicodedata.category(character) != "Cc")
        text = " ".join(text.split())
    text = text.strip(ZERO_WIDTH_AT_ENDS + " ")
    return "" if all(map(_is_invisible, text)) else text


def _is_invisible(character: str) -> bool:
    return (
        unicodedata.category(character) in INVISIBLE
        or character in BLANK_LETTERS
        or ord(character) in VARIATION_SELECTORS
    )
