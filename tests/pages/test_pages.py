"""A page is one file that loads nothing, shows text as text, and can be read in light and in dark."""

from __future__ import annotations

import base64
import io
import itertools
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from common.errors import UserError
from features.feature_spec import FeatureSpec
from features.log_mel import log_mel
from pages.page import TEMPLATES, write_page
from pages.picture import Levels, draw_sound, draw_window
from pages.preview_page import CaptionedPicture, Card, Chapter, PreviewPage, Section, Setting
from pages.sound import make_sound
from tests.conftest import tone

SPEC = FeatureSpec(80, 16000, 400, 160, 30)
LEVELS = Levels(-1.0, 1.0)
HOSTILE = "<script>alert(1)</script>\"'><img src=http://example.com/x>"


class Elements(HTMLParser):
    """The elements of a page, each with its attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, attribute: str) -> list[str]:
        return [str(attributes[attribute]) for _, attributes in self.found if attribute in attributes]


def draw(seconds: float, alt: str = "a tone"):
    waveform = tone(seconds)
    features, _ = log_mel(waveform, SPEC)
    return draw_sound(waveform, [features], SPEC, until_s=seconds, levels=LEVELS, alt=alt, reference=0.5 * waveform)


@pytest.fixture(scope="module")
def hostile_page() -> str:
    picture = draw(1.0, HOSTILE)
    card = Card(HOSTILE, HOSTILE, make_sound(tone(1.0), 16000, HOSTILE), [CaptionedPicture(picture, HOSTILE)] * 2)
    again = Card("again", "again", card.sound, [CaptionedPicture(draw(1.0, HOSTILE))])
    section = Section(HOSTILE, HOSTILE, [card, again], [Setting(HOSTILE, HOSTILE, HOSTILE)], [HOSTILE])
    chapter = Chapter(HOSTILE, [section], [(HOSTILE, HOSTILE)], [HOSTILE])
    return PreviewPage([chapter], [(HOSTILE, HOSTILE)], [(HOSTILE, HOSTILE)], [Setting(HOSTILE, HOSTILE)]).html()


def test_names_and_transcripts_are_shown_as_text_and_nothing_is_loaded(hostile_page):
    elements = Elements(hostile_page)
    tags = [tag for tag, _ in elements.found]
    assert tags.count("script") == 1
    assert "img" not in tags
    loaded = elements.values("src") + elements.values("href") + elements.values("xlink:href")
    assert {value.partition(":")[0] if ":" in value else value[0] for value in loaded} == {"data", "#"}
    (policy,) = [value for value in elements.values("content") if "default-src" in value]
    assert "default-src 'none'" in policy


def test_a_page_names_its_language_its_pictures_and_its_players(hostile_page):
    elements = Elements(hostile_page)
    assert elements.found[0] == ("html", {"lang": "en"})
    pictures = [attributes for tag, attributes in elements.found if tag == "svg"]
    assert pictures
    assert all(attributes["role"] == "img" and attributes["aria-label"] == HOSTILE for attributes in pictures)
    players = [attributes for tag, attributes in elements.found if tag == "audio"]
    assert all(str(attributes["aria-label"]).startswith(HOSTILE) for attributes in players)
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))  # none is skipped


def test_two_pictures_have_no_id_in_common_and_take_the_pages_colours():
    one, other = (Elements(draw(1.0).svg) for _ in range(2))
    assert not set(one.values("id")) & set(other.values("id"))
    svg = str(draw(1.0).svg)
    assert "currentColor" in svg
    assert "var(--wave)" in svg
    assert "var(--reference)" in svg
    targets = re.findall(r"url\(#([^)]+)\)", svg) + [value[1:] for value in Elements(svg).values("xlink:href")
                                                    if value.startswith("#")]  # fmt: skip
    assert set(targets) <= set(Elements(svg).values("id"))


@pytest.mark.parametrize("seconds", [0.1, 30.0])
def test_a_sound_and_its_picture_stay_small(seconds):
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, round(seconds * 16000)).astype(np.float32)  # the worst that there is to compress
    features, pad_value = log_mel(noise, SPEC)
    picture = draw_sound(noise, [features], SPEC, until_s=seconds, levels=LEVELS, alt="noise")
    window = draw_window(features, pad_value, SPEC, levels=LEVELS, alt="window")
    assert len(picture.svg) < 100_000
    assert len(window.svg) < 60_000
    assert len(make_sound(noise, 16000, "noise").source) < 350_000


@pytest.mark.parametrize("seconds", [0.1, 1.0, 3.7])
def test_a_sound_is_mp3_of_the_same_length_and_the_same_tone(seconds):
    sound = make_sound(tone(seconds), 16000, "tone")
    kind, _, content = sound.source.partition(";base64,")
    waveform, rate = soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32")
    assert (kind, rate, sound.duration_s) == ("data:audio/mpeg", 16000, pytest.approx(seconds))
    assert len(waveform) == round(seconds * 16000)
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    assert np.argmax(spectrum) / seconds == pytest.approx(440, abs=10)


def _colors(block: str) -> dict[str, str]:
    return dict(re.findall(r"--(\w+): (#\w{6})", block))


def _luminance(color: str) -> float:
    """Source: WCAG 2, relative luminance."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_waveforms_stand_out_from_what_is_behind_them(scheme):
    light, dark = re.findall(r":root \{(.+?)\}", (TEMPLATES / "style.css").read_text(encoding="utf-8"), re.S)
    colors = _colors(light) | (_colors(dark) if scheme == "dark" else {})
    for front, least in (("text", 7.0), ("quiet", 4.5), ("link", 4.5), ("wave", 3.0)):
        for back in ("page", "card", *(["note"] if front == "text" else [])):
            lighter, darker = sorted((_luminance(colors[front]), _luminance(colors[back])), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= least, (front, back)


def test_a_page_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*; choose another --output"):
        write_page(tmp_path / "file" / "page.html", "", "choose another --output")


def test_without_matplotlib_the_line_to_install_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-tools\.txt"):
        draw(1.0)
