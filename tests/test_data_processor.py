"""Recordings become the waveforms and log-mels that Whisper's own feature extractor would give."""

from __future__ import annotations

import io
import pickle
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor, WhisperTokenizer

from audio.audio_file import RecordingError
from audio.flac_decoder import open_mono_flac
from audio.waveform import load_waveform
from common.errors import UserError
from config import DataConfig, ModelConfig
from features.feature_spec import FeatureSpec, ModelFilesError, load_feature_spec
from features.labels import load_transcript_encoder
from features.log_mel import log_mel
from tests.conftest import tone
from tests.runs import DIGITS

SPECS = {bins: FeatureSpec(bins, 16000, 400, 160, 30) for bins in (80, 128)}
EXTRACTORS = {bins: WhisperFeatureExtractor(feature_size=bins) for bins in (80, 128)}
DATA = DataConfig()


def rebuild(waveform: np.ndarray, spec: FeatureSpec, dtype: str) -> np.ndarray:
    """The log-mel of the whole window, from the part that is stored."""
    features, pad_value = log_mel(waveform, spec)
    window = np.full((spec.num_mel_bins, spec.window_frames), pad_value, np.float32)
    window[:, : features.shape[1]] = features.astype(dtype)
    return window


@settings(max_examples=40, deadline=None)
@given(
    samples=st.integers(1, 480_000),
    bins=st.sampled_from([80, 128]),
    level=st.floats(1e-4, 1.0),
    frequency_hz=st.floats(25, 7990),
    noise=st.sampled_from([0.0, 0.01, 0.3]),
    seed=st.integers(0, 99),
)
@example(samples=480_000, bins=80, level=1.0, frequency_hz=440, noise=0.01, seed=0)
@example(
    samples=479_900, bins=128, level=1.0, frequency_hz=440, noise=0.01, seed=0
)  # the window's end reflects real samples
@example(samples=199, bins=80, level=1.0, frequency_hz=440, noise=0.01, seed=0)  # shorter than the reflected edge
def test_log_mel_equals_whispers_extractor_on_padded_audio(samples, bins, level, frequency_hz, noise, seed):
    time_s = np.arange(samples) / 16000
    hiss = noise * np.random.default_rng(seed).standard_normal(samples)
    waveform = (level * (0.5 * np.sin(2 * np.pi * frequency_hz * time_s) + hiss)).astype(np.float32)
    features = rebuild(waveform, SPECS[bins], "float32")
    exact = EXTRACTORS[bins]._np_extract_fbank_features(np.pad(waveform, (0, 480_000 - samples))[None], "cpu")[0]
    assert np.abs(features - exact).max() <= 1e-4
    assert np.abs(rebuild(waveform, SPECS[bins], "float16") - exact).max() <= 1e-3
    fast = EXTRACTORS[bins](waveform, sampling_rate=16000, return_tensors="np").input_features[0]
    assert np.abs(features - fast).max() <= 1e-4 + np.abs(fast - exact).max()  # its float32 is off beside bare tones


@pytest.mark.parametrize("path", sorted((DIGITS / "eval").glob("*.ogg"))[:10], ids=lambda path: path.stem)
@pytest.mark.parametrize("bins", [80, 128])
def test_log_mel_of_speech_equals_the_extractors(path, bins):
    waveform = load_waveform(path, SPECS[bins], DATA)
    expected = EXTRACTORS[bins](waveform, sampling_rate=16000, return_tensors="np").input_features[0]
    assert np.abs(rebuild(waveform, SPECS[bins], "float32") - expected).max() <= 1e-4
    assert np.abs(rebuild(waveform, SPECS[bins], "float16") - expected).max() <= 1e-3


@pytest.mark.parametrize("samples", [1, 1600, 480_000])
def test_log_mel_of_silence_is_one_constant(samples):
    silence = np.zeros(samples, np.float32)
    expected = EXTRACTORS[80](silence, sampling_rate=16000, return_tensors="np").input_features[0]
    np.testing.assert_allclose(rebuild(silence, SPECS[80], "float32"), expected, atol=1e-6)


def test_log_mel_keeps_only_the_frames_that_hold_audio():
    features, _ = log_mel(tone(3.3), SPECS[80])
    assert features.shape == (80, 332)
    assert features.dtype == np.float32


def test_log_mel_refuses_more_than_a_window():
    with pytest.raises(ValueError, match="window"):
        log_mel(np.zeros(480_001, np.float32), SPECS[80])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.wav", {}),
        ("a.wav", {"subtype": "PCM_U8"}),
        ("a.wav", {"subtype": "PCM_24"}),
        ("a.wav", {"subtype": "DOUBLE"}),
        ("a.flac", {}),
        ("a.mp3", {}),
        ("a.ogg", {}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("odd näme 'আ' \" (1).flac", {}),
    ],
)
@pytest.mark.parametrize("sampling_rate", [8000, 16000, 48000])
def test_every_format_and_rate_decodes_to_the_same_sound(write_recording, name, options, sampling_rate):
    path = write_recording(name, 1.5, sampling_rate, **options)
    waveform = load_waveform(path, SPECS[80], DATA)
    assert waveform.dtype == np.float32
    assert waveform.ndim == 1
    assert abs(len(waveform) - 24_000) < 1600  # MP3 and Opus pad
    assert np.abs(waveform).max() == pytest.approx(1.0)
    spectrum = np.abs(np.fft.rfft(waveform[4000:20_000] * np.hanning(16_000)))
    assert np.argmax(spectrum) == pytest.approx(300, abs=2)


@pytest.mark.parametrize("sampling_rate", [22_050, 44_100, 96_000])
def test_six_channels_are_mixed_and_resampled(write_recording, sampling_rate):
    waveform = load_waveform(write_recording("six.wav", 1.0, sampling_rate, channels=6), SPECS[80], DATA)
    assert len(waveform) == pytest.approx(16_000, abs=2)
    spectrum = np.abs(np.fft.rfft(waveform[:16_000]))
    assert sorted(np.argsort(spectrum)[-6:]) == pytest.approx([300, 400, 500, 600, 700, 800], abs=2)


def test_nothing_above_half_the_new_rate_folds_back(tmp_path):
    soundfile.write(tmp_path / "high.wav", tone(1.0, 12_000, 48_000), 48_000)
    waveform = load_waveform(tmp_path / "high.wav", SPECS[80], DataConfig(peak_normalize=False))
    assert np.sqrt(np.mean(waveform**2)) < 0.02  # only the noise is left of a tone at RMS 0.32


def test_without_peak_normalisation_the_level_stays_but_never_exceeds_one(tmp_path):
    keep = DataConfig(peak_normalize=False)
    soundfile.write(tmp_path / "soft.wav", 0.1 * tone(1.0), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "loud.wav", 5 * tone(1.0), 16_000, subtype="FLOAT")
    assert np.abs(load_waveform(tmp_path / "soft.wav", SPECS[80], keep)).max() < 0.06
    assert np.abs(load_waveform(tmp_path / "loud.wav", SPECS[80], keep)).max() == pytest.approx(1.0)


@pytest.mark.parametrize("sampling_rate", [16_000, 44_100])
@pytest.mark.parametrize("peak_normalize", [True, False])
def test_whole_numbers_are_decoded_as_floats_are(tmp_path, sampling_rate, peak_normalize):
    whole_numbers = np.round(20_000 * tone(1.0, sampling_rate=sampling_rate)).astype(np.int16)
    soundfile.write(tmp_path / "int.flac", whole_numbers, sampling_rate, subtype="PCM_16")
    soundfile.write(tmp_path / "float.wav", whole_numbers / np.float32(32768), sampling_rate, subtype="FLOAT")
    data = DataConfig(peak_normalize=peak_normalize)
    one, other = (load_waveform(tmp_path / name, SPECS[80], data) for name in ("int.flac", "float.wav"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("channels", "subtype"), [(1, "PCM_16"), (2, "PCM_16"), (1, "PCM_24"), (1, "PCM_S8")])
def test_every_kind_of_flac_decodes_to_what_libsndfile_gives(write_recording, channels, subtype):
    path = write_recording("a.flac", 1.5, 16_000, channels=channels, subtype=subtype)
    expected = soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
    waveform = load_waveform(path, SPECS[80], DataConfig(peak_normalize=False))
    np.testing.assert_allclose(waveform, expected, atol=1e-7)


def test_flac_in_memory_decodes_as_the_file_does(write_recording):
    path = write_recording("a.flac", 1.5, 16_000)
    data = io.BytesIO(path.read_bytes())
    found = open_mono_flac(data).decode()
    np.testing.assert_array_equal(found, soundfile.read(path, dtype="int16")[0])
    assert data.tell() == 0


def test_flac_with_a_damaged_middle_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.flac", tone(4.0), 16_000)
    damaged = bytearray((tmp_path / "a.flac").read_bytes())
    damaged[len(damaged) // 2 : len(damaged) // 2 + 2000] = bytes(range(200)) * 10
    (tmp_path / "a.flac").write_bytes(damaged)
    with pytest.raises(RecordingError, match=r"truncated|not readable"):
        load_waveform(tmp_path / "a.flac", SPECS[80], DATA)


def write_bad_recordings(folder):
    """Bad files by name; each must be refused with the reason named here."""
    soundfile.write(folder / "nan.wav", np.full(16_000, np.nan), 16_000, subtype="FLOAT")
    soundfile.write(folder / "long.flac", np.zeros(31 * 16_000), 16_000)
    soundfile.write(folder / "none.wav", np.zeros(0), 16_000)
    soundfile.write(folder / "one.wav", np.zeros(1), 16_000)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no audio")
    (folder / "folder.wav").mkdir()
    soundfile.write(folder / "whole.flac", tone(3.0), 16_000)
    whole = (folder / "whole.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(whole[: len(whole) // 2])
    samples = tone(1.0).tobytes()
    riff = b"RIFF\xff\xff\xff\xffWAVEfmt " + struct.pack("<IHHIIHH", 16, 3, 1, 16_000, 64_000, 4, 32)
    (folder / "claims_4_gb.wav").write_bytes(riff + b"data\xf0\xff\xff\xff" + samples)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.wav", "file not found"),
        ("nan.wav", "NaN"),
        ("long.flac", "too long: 31.00 s, the limit is 30 s"),
        ("none.wav", "too short"),
        ("one.wav", "too short"),
        ("empty.wav", "empty file"),
        ("text.wav", "not readable as audio"),
        ("folder.wav", "a folder"),
        ("truncated.flac", "truncated|not readable"),
    ],
)
def test_a_bad_recording_is_refused_with_its_reason(tmp_path, name, reason):
    write_bad_recordings(tmp_path)
    with pytest.raises(RecordingError, match=reason):
        load_waveform(tmp_path / name, SPECS[80], DATA)


def test_a_header_that_claims_4_gb_neither_fools_nor_fills_the_memory(tmp_path):
    write_bad_recordings(tmp_path)
    try:
        waveform = load_waveform(tmp_path / "claims_4_gb.wav", SPECS[80], DATA)
    except RecordingError:
        return  # believed, and refused as too long or truncated
    assert len(waveform) == 16_000  # libsndfile went by the size of the file


def test_feature_settings_come_from_the_model(tiny_checkpoint):
    spec = load_feature_spec(str(tiny_checkpoint))
    assert spec == FeatureSpec(80, 16000, 400, 160, 4)
    assert (spec.window_samples, spec.window_frames) == (64_000, 400)


def test_feature_settings_saved_by_a_processor_are_found_too(tiny_checkpoint, tmp_path):
    from transformers import WhisperProcessor

    WhisperProcessor.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)  # nests them in processor_config.json
    assert load_feature_spec(str(tmp_path)) == load_feature_spec(str(tiny_checkpoint))


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelFilesError, match="nowhere"):
        load_feature_spec(str(tmp_path / "nowhere"))
    with pytest.raises(ModelFilesError, match="nowhere"):
        load_transcript_encoder(ModelConfig(model_name=str(tmp_path / "nowhere")))


def test_a_sampling_rate_that_is_not_the_models_is_refused():
    with pytest.raises(UserError, match="is 8000 Hz but the model takes 16000 Hz"):
        SPECS[80].check_sample_rate(8000)


@pytest.mark.parametrize(("language", "task"), [("English", "transcribe"), ("bn", "translate"), ("", "transcribe")])
def test_labels_are_the_tokenizers_own(tiny_checkpoint, language, task):
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language=language, task=task))
    tokenizer = WhisperTokenizer.from_pretrained(tiny_checkpoint)
    tokenizer.set_prefix_tokens(language=language or None, task=task if language else None)
    for transcript in ("one two three", "আমি বাংলায় গান গাই"):
        labels = pickle.loads(pickle.dumps(encoder)).encode(transcript)
        assert labels.dtype == np.int32
        assert labels.tolist() == tokenizer(transcript).input_ids
        assert tokenizer.decode(labels, skip_special_tokens=True) == transcript


def test_the_longest_transcript_is_judged_by_its_tokens(tiny_checkpoint):
    encoder = load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="English"))
    special = len(encoder.encode(""))
    fits, too_long = "ẞ" * 2000, "ẞ" * 2000
    while len(encoder.encode(fits)) > encoder.max_tokens:
        fits, too_long = fits[:-1], fits
    assert len(encoder.encode(fits)) > special
    assert not encoder.is_too_long(fits)
    assert encoder.is_too_long(too_long)


def test_the_digest_tells_languages_apart(tiny_checkpoint):
    digests = {
        load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language=language, task=task)).digest
        for language in ("English", "Bengali")
        for task in ("transcribe", "translate")
    }
    assert len(digests) == 4


def test_an_unknown_language_is_refused(tiny_checkpoint):
    with pytest.raises(UserError, match="Klingon"):
        load_transcript_encoder(ModelConfig(model_name=str(tiny_checkpoint), language="Klingon"))
