"""The preview in a real browser: it plays, fits a telephone and a desk, and complains of nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page

from config import AudioAugmentationConfig, Config, DataConfig
from tests.runs import DIGITS, ROOT, wait_until
from tools.preview import make_page

Scheme = Literal["light", "dark"]

LOADED = "[...document.querySelectorAll('audio')].every(player => player.readyState >= 1)"
PLAYERS = "[...document.querySelectorAll('audio')].map(player => [player.ariaLabel, player.duration])"
TOO_WIDE = """[...document.querySelectorAll('body *')].filter(
    element => element.getBoundingClientRect().right > innerWidth + 1 && !element.closest('.skip, svg')).length"""


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with each of the eight augmentations and one of audiomentations."""
    folder = tmp_path_factory.mktemp("preview")
    config = Config(
        data=DataConfig(cache_dir=str(folder / "cache")),
        audio_augmentation=AudioAugmentationConfig(
            speed_factors=[0.75], pitch_shift_range=[3.0], far_field_distances=[3.0], far_field_rooms=1,
            bg_noise_focus_min_max=[0.8], bg_noise_file_list=[str(ROOT / "examples" / "noise")], noise_colors=["pink"],
            down_upsampling_min_max=[2000], extra_transforms=["audiomentations.PolarityInversion"],
        ),
    )  # fmt: skip
    page = folder / "preview.html"
    page.write_text(make_page(config, [str(DIGITS / "eval" / "0001.ogg")], []).html(), encoding="utf-8")
    return page


@contextmanager
def shown(
    browser: Browser, page: Path, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Page]:
    """The page, its players loaded, without a network; in the end it has complained of nothing, and loaded nothing."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
    tab, complaints, requests = context.new_page(), [], []
    tab.on("console", lambda message: complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda request: requests.append(request.url))
    try:
        tab.goto(page.as_uri())
        wait_until(lambda: tab.evaluate(LOADED))  # the page's policy forbids playwright's own way to wait
        yield tab
        assert complaints == []
        assert [url for url in requests if not url.startswith("data:")] == [page.as_uri()]
    finally:
        context.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark")])
def test_every_player_loads_with_its_duration_and_nothing_is_too_wide(browser, preview, width, scheme):
    with shown(browser, preview, width, scheme) as tab:
        players = tab.evaluate(PLAYERS)
        assert len(players) == 10
        for label, duration_s in players:
            assert duration_s == pytest.approx(float(label.split(", ")[-1].split()[0]), abs=0.02)
        for details in tab.query_selector_all("summary"):
            details.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate(TOO_WIDE) == 0
        dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(16, 20, 24)"
        assert dark == (scheme == "dark")
        assert tab.evaluate("[...document.querySelectorAll('svg image')].every(i => i.getBBox().width > 100)")


def test_sounds_are_played_by_the_keyboard_one_at_a_time(browser, preview):
    playing = "[...document.querySelectorAll('audio')].filter(player => !player.paused).length"
    with shown(browser, preview) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        for label in ("Original", "factor 0.75"):
            for _ in range(40):
                if str(tab.evaluate("document.activeElement.ariaLabel")).startswith(label):
                    break
                tab.keyboard.press("Tab")
            tab.keyboard.press("Space")
            wait_until(lambda: tab.evaluate("document.activeElement.currentTime") > 0.1)
            assert tab.evaluate(playing) <= 1
