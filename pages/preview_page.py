"""The page of `tools.preview`: augmentations to hear and to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pages.page import render
from pages.picture import Picture
from pages.sound import Sound


@dataclass(frozen=True)
class CaptionedPicture:
    """A picture with what stands below it."""

    picture: Picture
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """One sound and its pictures."""

    title: str
    """What was drawn: "factor 0.75"."""
    label: str
    """What samples, counts and reports call it: "speed=0.75"."""
    sound: Sound
    pictures: Sequence[CaptionedPicture]
    facts: Sequence[tuple[str, str]] = ()
    """Name and value."""


@dataclass(frozen=True)
class Setting:
    """A field of config.py."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True)
class Section:
    """An augmentation with all its options."""

    title: str
    text: str
    cards: Sequence[Card]
    settings: Sequence[Setting] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Chapter:
    """What was made of a file, or of a position of the plan."""

    title: str
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class PreviewPage:
    """All that the page says."""

    chapters: Sequence[Chapter]
    facts: Sequence[tuple[str, str]] = ()
    left_out: Sequence[tuple[str, str]] = ()
    """Augmentations that are not shown, and why."""
    changed: Sequence[Setting] = field(default_factory=list)
    """Settings that are not the defaults of config.py."""

    def html(self) -> str:
        """The page as one self-contained file."""
        return render("preview.html", page=self)
