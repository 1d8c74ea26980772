"""A recording's header at a URL costs little memory, whatever length it claims."""

from __future__ import annotations

import io
import random
import tracemalloc

import pytest
import soundfile

from audio.audio_file import open_audio
from config import DataConfig
from storage.audio_sources import LARGEST_WAV_BYTES, START_BYTES, PaddedStart, fetch_header
from tests.conftest import tone


def test_a_padded_start_reads_as_the_file_with_zeros():
    numbers = random.Random(1)
    padded, plain = PaddedStart(b"0123456789", 25), io.BytesIO(b"0123456789".ljust(25, b"\0"))
    for _ in range(500):
        whence, offset = numbers.choice([(0, 0), (0, 8), (0, 30), (1, 3), (1, -4), (2, -9), (2, 0)])
        assert padded.seek(max(offset, -padded.tell()) if whence == 1 else offset, whence) == padded.tell()
        plain.seek(padded.tell())
        size = numbers.choice([0, 1, 7, 40, -1])
        assert padded.read(size) == plain.read(size)
        assert padded.tell() == plain.tell()


def test_sixteen_headers_that_claim_the_most_take_a_few_megabytes():
    content = io.BytesIO()
    soundfile.write(content, tone(10.0, sampling_rate=44100), 44100, format="WAV")
    start = content.getvalue()[:START_BYTES]
    tracemalloc.start()
    headers = [PaddedStart(start, LARGEST_WAV_BYTES) for _ in range(16)]
    for header in headers:
        with open_audio(header) as file:
            assert file.frames / file.sampling_rate == pytest.approx(10.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 17 * START_BYTES + 2**20


def test_the_header_of_a_long_wav_is_a_padded_start(s3):
    content = io.BytesIO()
    soundfile.write(content, tone(29.0, sampling_rate=44100), 44100, format="WAV")
    source, is_whole = fetch_header(s3.put("long.wav", content.getvalue()), DataConfig(retry_timeout_s=3))
    assert isinstance(source, PaddedStart)
    assert not is_whole
    assert source.seek(0, io.SEEK_END) == len(content.getvalue())
