"""Recordings in the formats of phones, browsers and telephones, written by PyAV: no program is needed."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

CODECS = {
    "m4a": "aac", "mp4": "aac", "mov": "alac", "webm": "libopus", "mkv": "flac", "wma": "wmav2", "aac": "aac",
    "amr": "libopencore_amrnb", "oga": "flac", "avi": "libmp3lame", "mp3": "libmp3lame",
    "ts": "aac", "flac": "flac",
}  # fmt: skip
FORMATS = {"m4a": "ipod", "mkv": "matroska", "wma": "asf", "aac": "adts", "ts": "mpegts"}


def encode(
    path: Path, waveform: np.ndarray, sampling_rate: int, *, codec: str = "", picture: bool = False, **options: str
) -> Path:
    """Writes a recording.

    Args:
        path: its ending gives the format.
        waveform: `[samples]` or `[samples, channels]`, within ±1.
        sampling_rate: in Hz.
        codec: another than the format's usual one.
        picture: whether to add a moving picture, so that it is a video.
        options: of ffmpeg's muxer.
    """
    kind = path.suffix[1:]
    channels = waveform.reshape(len(waveform), -1)
    layout = "mono" if channels.shape[1] == 1 else "stereo"
    with av.open(str(path), "w", format=FORMATS.get(kind), options=options) as container:
        moving = container.add_stream("mpeg4", rate=10) if picture else None
        if moving:
            moving.width = moving.height = 32
            moving.pix_fmt = "yuv420p"
        stream: Any = container.add_stream(codec or CODECS[kind], rate=sampling_rate, layout=layout)
        if kind == "wma":
            stream.bit_rate = 48_000
        for start in range(0, len(channels), sampling_rate):
            whole = (channels[start : start + sampling_rate] * 32_767).round().astype(np.int16)
            frame = av.AudioFrame.from_ndarray(whole.reshape(1, -1), format="s16", layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = sampling_rate, start, Fraction(1, sampling_rate)
            container.mux(stream.encode(frame))
            if moving:
                for number in range(10):
                    image = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 20 * number, np.uint8), format="rgb24")
                    container.mux(moving.encode(image))
        container.mux(stream.encode(None))
        if moving:
            container.mux(moving.encode(None))
    return path
