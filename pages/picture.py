"""Pictures in a page: waveforms and log-mels, drawn by librosa's display as SVG.

The SVG is part of the page, not a file behind an <img>: its text and lines take the page's colours, light or dark, and
are sharp at any size. What is made of pixels, the log-mel, is WebP inside.
"""

from __future__ import annotations

import base64
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup, escape

from common.errors import UserError
from features.feature_spec import FeatureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES, WAVE, REFERENCE = "#010203", "#040506", "#070809"
"""Colours of a drawing that stand for colours of the page."""
PAGE_COLORS = {LINES: "currentColor", WAVE: "var(--wave)", REFERENCE: "var(--reference)"}
WIDTH_PT, LEFT_PT, RIGHT_PT, BOTTOM_PT, GAP_PT = 360, 34, 6, 26, 8
WAVE_PT, LOG_MEL_PT, WINDOW_PT = 54, 110, 60
"""Heights of the panels. 1 pt is 1/72 inch."""
PIXELS_PER_INCH = 144
WEBP_QUALITY = 80
WAVE_POINTS = 350
"""Columns in which the envelope of a waveform is drawn."""
HIGHEST_HZ = 8000.0
"""Where the mel filters of every Whisper end."""

_numbers = itertools.count(1)
"""Each picture of a process has other ids, because a page may hold any of them."""


@dataclass(frozen=True)
class Picture:
    """A drawing for a page."""

    svg: Markup
    alt: str
    """What it shows, for who can't see it."""


@dataclass(frozen=True)
class Levels:
    """Which values of log-mels get the darkest and the brightest colour, so that pictures can be compared."""

    low: float
    high: float


def draw_sound(
    waveform: np.ndarray,
    log_mels: Sequence[np.ndarray],
    spec: FeatureSpec,
    *,
    until_s: float,
    levels: Levels,
    alt: str,
    reference: np.ndarray | None = None,
) -> Picture:
    """A waveform, and below it log-mels on the same axis of time.

    Args:
        waveform: float32 `[samples]`, mono, within ±1.
        log_mels: each float32 or float16 `[mel bins, frames]`.
        spec: what the log-mels look like.
        until_s: where the axis of time ends, in seconds.
        levels: of the colours.
        alt: what the picture shows.
        reference: another waveform, drawn behind the first: what it was before.

    Raises:
        UserError: matplotlib is not installed.
    """
    heights = [WAVE_PT, *(LOG_MEL_PT for _ in log_mels)]
    figure, (wave_axes, *mel_axes) = _figure(heights)
    waves = [(waveform, WAVE)] if reference is None else [(reference, REFERENCE), (waveform, WAVE)]
    _draw_waves(wave_axes, waves, spec.sampling_rate)
    for axes, log_mel in zip(mel_axes, log_mels, strict=True):
        _draw_log_mel(axes, log_mel, spec, levels)
    _share_time(figure, [wave_axes, *mel_axes], until_s)
    return Picture(_svg(figure, alt), alt)


def draw_window(features: np.ndarray, pad_value: float, spec: FeatureSpec, *, levels: Levels, alt: str) -> Picture:
    """The model's whole window: the frames that hold audio, and the constant behind them.

    Args:
        features: float32 or float16 `[mel bins, frames]`.
        pad_value: the constant.
        spec: what the log-mel looks like.
        levels: of the colours.
        alt: what the picture shows.

    Raises:
        UserError: matplotlib is not installed.
    """
    window = np.full((spec.num_mel_bins, spec.window_frames), pad_value, np.float32)
    window[:, : features.shape[1]] = features
    figure, (axes,) = _figure([WINDOW_PT])
    _draw_log_mel(axes, window, spec, levels)
    _share_time(figure, [axes], float(spec.chunk_length_s))
    return Picture(_svg(figure, alt), alt)


def _figure(heights_pt: Sequence[int]) -> tuple[Figure, list[Axes]]:
    """A figure with panels of these heights, one below the other."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "matplotlib is missing, which draws the pictures: pip install -r requirements-tools.txt"
        ) from error
    height_pt = sum(heights_pt) + GAP_PT * len(heights_pt) + BOTTOM_PT
    figure = Figure(figsize=(WIDTH_PT / 72, height_pt / 72))
    panels, top = [], height_pt - GAP_PT
    width = (WIDTH_PT - LEFT_PT - RIGHT_PT) / WIDTH_PT
    for panel_pt in heights_pt:
        panels.append(figure.add_axes((LEFT_PT / WIDTH_PT, (top - panel_pt) / height_pt, width, panel_pt / height_pt)))
        top -= panel_pt + GAP_PT
    return figure, panels


def _draw_waves(axes: Axes, waves: Sequence[tuple[np.ndarray, str]], sampling_rate: int) -> None:
    import librosa.display  # takes seconds, which only those pay who draw

    for waveform, color in waves:
        librosa.display.waveshow(
            waveform, sr=sampling_rate, ax=axes, max_points=WAVE_POINTS, color=color, axis=None, linewidth=0.3
        )
    axes.set_ylim(-1.05, 1.05)
    axes.set_yticks([-1, 0, 1])


def _draw_log_mel(axes: Axes, log_mel: np.ndarray, spec: FeatureSpec, levels: Levels) -> None:
    import librosa.display

    librosa.display.specshow(
        log_mel.astype(np.float32), sr=spec.sampling_rate, hop_length=spec.hop_length, n_fft=spec.n_fft, ax=axes,
        x_axis="s", y_axis="mel", fmin=0.0, fmax=HIGHEST_HZ, vmin=levels.low, vmax=levels.high, cmap="magma",
        rasterized=True,
    )  # fmt: skip
    axes.set_yticks([512, 1024, 2048, 4096])
    axes.set(xlabel="", ylabel="")


def _share_time(figure: Figure, panels: Sequence[Axes], until_s: float) -> None:
    for axes in panels:
        axes.set_xlim(0, until_s)
        axes.tick_params(labelsize=8, length=2, color=LINES, labelcolor=LINES, labelbottom=axes is panels[-1])
        axes.set_facecolor("none")
        for spine in axes.spines.values():
            spine.set_edgecolor(LINES)
            spine.set_linewidth(0.4)
    panels[-1].set_xlabel("seconds", fontsize=8, color=LINES, labelpad=1)


def _svg(figure: Figure, alt: str) -> Markup:
    """The figure as an SVG element of a page."""
    import matplotlib

    text = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pages", "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", dpi=PIXELS_PER_INCH, transparent=True, metadata=no_metadata)
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r"data:image/png;base64,([^\"]+)", lambda match: _webp(match[1]), svg)
    svg = re.sub(r"(?<=\.\d\d)\d+(?=[\s\"])", "", svg)  # a hundredth of a point is finer than any screen
    prefix = f"p{next(_numbers)}-"
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}", svg)
    for drawn, shown in PAGE_COLORS.items():
        svg = svg.replace(drawn, shown)
    svg = re.sub(r'(?<=\s)(width|height)="[^"]+pt"', "", svg)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{escape(alt)}"', 1)
    return Markup(re.sub(r"\s*\n\s*", " ", svg))


def _webp(png: str) -> str:
    """A data: URI of WebP from PNG in base64: an eighth of the size, as noise does not compress without loss."""
    from PIL import Image

    content = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode("".join(png.split())))) as image:
        image.save(content, "WEBP", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"
