"""A sound in a page: compressed, and part of the page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import soundfile

MP3_COMPRESSION = 0.5
"""libsndfile's, 0 to 1: about 45 kbit/s of speech at 16 kHz."""


@dataclass(frozen=True)
class Sound:
    """What a player plays."""

    source: str
    """A data: URI of MP3, which all browsers play, those of old telephones too."""
    duration_s: float
    """In seconds."""
    label: str
    """What is heard, for readers of the screen."""


def make_sound(waveform: np.ndarray, sampling_rate: int, label: str) -> Sound:
    """Compresses a waveform for a page.

    Args:
        waveform: float32 `[samples]`, mono, within ±1.
        sampling_rate: in Hz.
        label: what is heard.
    """
    content = io.BytesIO()
    soundfile.write(
        content, waveform, sampling_rate, format="MP3", subtype="MPEG_LAYER_III", compression_level=MP3_COMPRESSION
    )
    encoded = base64.b64encode(content.getvalue()).decode()
    return Sound(f"data:audio/mpeg;base64,{encoded}", len(waveform) / sampling_rate, label)
