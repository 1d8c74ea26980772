"""tools.preview: what is heard is what is trained, what is said of it is true, and mistakes are told in a line."""

from __future__ import annotations

import base64
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audio.augmentation_registry import AUGMENTATIONS
from audio.effects import add_far_field
from audio.part import Part
from audio.room_acoustics import Room
from audio.waveform import load_waveform
from audioaugmentations import AudioAugmentations, Choice, Step
from common.errors import UserError
from config import AudioAugmentationConfig, Config, DataConfig, ModelConfig, RedisConfig
from features.sample import encode_sample
from pages.sound import Sound
from producing.sample_worker import SampleWorker
from tests.conftest import tone
from tests.runs import DIGITS, ROOT
from tools import preview, preview_cards
from tools.augmentation_words import WORDS, Sources, field_meanings, reverberation_s
from tools.preview import Settings, changed_settings, make_page
from tools.preview_files import feature_spec, left_out
from tools.preview_positions import PositionPreview, preview_positions
from tools.watched_augmentations import StepTrace, WatchedAugmentations

FILE = str(DIGITS / "eval" / "0000.ogg")
NOISE = str(ROOT / "examples" / "noise")
RATE = 16000


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the drawing, most of the time that a page takes; tests/pages draws."""
    nothing = type("Nothing", (), {"svg": "", "alt": ""})()
    monkeypatch.setattr(preview_cards, "draw_sound", lambda *_, **__: nothing)
    monkeypatch.setattr(preview_cards, "draw_window", lambda *_, **__: nothing)


def config_with(tmp_path: Path, **augmentation: Any) -> Config:
    settings: dict[str, Any] = {"far_field_rooms": 1, "far_field_distances": [1.0], **augmentation}
    return Config(
        data=DataConfig(cache_dir=str(tmp_path / "cache")), audio_augmentation=AudioAugmentationConfig(**settings)
    )


def heard(sound: Sound) -> np.ndarray:
    content = base64.b64decode(sound.source.partition(",")[2])
    return soundfile.read(io.BytesIO(content), dtype="float32")[0]


def trace_of(config: Config, tmp_path: Path, step: Step, waveform: np.ndarray, seed: int = 0) -> StepTrace:
    watched = WatchedAugmentations(config.audio_augmentation, tmp_path / "cache", 30 * RATE)
    traces = watched.start()
    watched.apply_waveform(waveform, Choice((step,)), np.random.default_rng(seed))
    (trace,) = traces
    return trace


@pytest.mark.usefixtures("undrawn")
def test_the_page_has_the_original_and_each_augmentation_with_each_option(tmp_path):
    config = config_with(
        tmp_path, bg_noise_file_list=[NOISE],
        extra_transforms=["audiomentations.Gain min_gain_db=-6 max_gain_db=-6", "audiomentations.PolarityInversion"],
    )  # fmt: skip
    (chapter,) = make_page(config, [FILE], []).chapters
    labels = [card.label for section in chapter.sections for card in section.cards]
    all_of_them = AudioAugmentations(config.audio_augmentation, tmp_path / "cache", 30 * RATE)
    expected = [str(Step(name, option)) for name in all_of_them.enabled for option in all_of_them.options[name]]
    assert labels == ["original", *expected]
    assert len(labels) == 1 + 6 + 2 + 1 + 3 + 5 + 3 + 1 + 2 + 1
    governing = {setting.name for section in chapter.sections for setting in section.settings}
    for row in AUGMENTATIONS.values():
        assert f"audio_augmentation.{row.prob_field}" in governing
    assert "audio_augmentation.extra_transforms" in governing
    seconds = {card.label: card.sound.duration_s for section in chapter.sections for card in section.cards}
    assert seconds["speed=0.75"] == pytest.approx(seconds["original"] / 0.75, abs=1e-3)


def test_every_field_of_the_configuration_has_a_meaning_and_words_name_fields_that_exist():
    for kind in (RedisConfig, DataConfig, ModelConfig, AudioAugmentationConfig):
        assert all(field_meanings(kind)[name] for name in kind.__dataclass_fields__)
    meanings = field_meanings(AudioAugmentationConfig)
    assert all(field in meanings for words in WORDS.values() for field in words.fields)


@pytest.mark.usefixtures("undrawn")
def test_the_room_that_is_named_is_the_room_that_is_heard(tmp_path):
    config = config_with(tmp_path, far_field_rooms=3)
    (chapter,) = make_page(config, [FILE], []).chapters
    (card,) = next(section for section in chapter.sections if section.title == "Far field").cards
    room = int(re.fullmatch(r"1 m, room (\d) of 3, reverberation 0\.\d\d s", card.title)[1])
    waveform = load_waveform(FILE, feature_spec("openai/whisper-medium"), config.data)
    rooms = Sources(config.audio_augmentation, tmp_path / "cache").rooms[1.0]
    likeness = [np.corrcoef(add_far_field(waveform, Room(each)), heard(card.sound))[0, 1] for each in rooms]
    assert int(np.argmax(likeness)) == room - 1
    assert max(likeness) > 0.99


@pytest.mark.parametrize("seed", range(4))
def test_the_noise_that_is_named_is_in_the_mix_at_the_level_that_is_named(tmp_path, seed):
    for name, frequency_hz in (("low.wav", 500), ("high.wav", 3000)):
        soundfile.write(tmp_path / name, tone(4.0, frequency_hz), RATE)
    config = config_with(tmp_path, bg_noise_file_list=[str(tmp_path / "low.wav"), str(tmp_path / "high.wav")])
    waveform = 0.1 * tone(2.0, 1000)
    for step in (Step("background_noise", (0.8,)), Step("color_noise", ("pink", 0.1))):
        trace = trace_of(config, tmp_path, step, waveform, seed)
        words = WORDS[step.name].drawn(trace, Sources(config.audio_augmentation, tmp_path / "cache"))
        noise = trace.after - waveform
        ratio_db = 10 * np.log10(np.mean(waveform**2) / np.mean(noise**2))
        assert ratio_db == pytest.approx(float(re.search(r"SNR ([\d.]+) dB", words)[1]), abs=0.06)
        if step.name == "background_noise":
            loudest_hz = np.argmax(np.abs(np.fft.rfft(noise))) / 2
            assert ("low.wav" in words) == (loudest_hz < 1000)


@pytest.mark.parametrize("decay_s", [0.2, 0.5])
def test_reverberation_is_measured_as_the_time_of_60_db(decay_s):
    noise = np.random.default_rng(0).standard_normal(RATE).astype(np.float32)
    response = noise * 10 ** (-3 * np.arange(RATE) / RATE / decay_s)
    assert reverberation_s(response, RATE) == pytest.approx(decay_s, rel=0.1)


@pytest.mark.usefixtures("undrawn")
def test_masks_are_seen_but_not_heard_and_counted(tmp_path):
    config = config_with(tmp_path, time_masks=1, freq_masks=1)
    (chapter,) = make_page(config, [FILE], []).chapters
    (card,) = next(section for section in chapter.sections if section.title == WORDS["masking"].title).cards
    frames, all_frames, bins = map(int, re.match(r"(\d+) of (\d+) frames and (\d+) of 80", card.title).groups())
    assert 1 <= frames <= 5
    assert all_frames == 147
    assert 1 <= bins <= 20
    assert "after masks" in card.pictures[0].caption
    assert card.sound.source == chapter.sections[0].cards[0].sound.source


@pytest.mark.usefixtures("undrawn")
def test_a_file_longer_than_the_window_shows_its_first_window_and_says_so(tmp_path, tiny_checkpoint):
    soundfile.write(tmp_path / "long.flac", np.concatenate([tone(3.0, 400), tone(3.0, 900)]), RATE)
    config = config_with(tmp_path, far_field_effect_prob=0.0)
    config.model.model_name = str(tiny_checkpoint)  # its window is 4 s
    (chapter,) = make_page(config, [str(tmp_path / "long.flac")], []).chapters
    assert re.search(r"6\.0 s long. Shown are its first 4 s", chapter.notes[0])
    original, speed = chapter.sections[:2]
    expected = load_waveform(tmp_path / "long.flac", feature_spec(str(tiny_checkpoint)), config.data, Part(0.0, 4.0))
    assert np.corrcoef(heard(original.cards[0].sound), expected)[0, 1] > 0.99
    assert [card.label for card in speed.cards] == ["speed=1.1", "speed=1.25", "speed=1.5"]
    assert speed.notes == [
        "Passed over, as the recording would be longer than the model's window: speed=0.75, speed=0.8, speed=0.9."
    ]


def test_what_is_left_out_is_named_with_its_reason():
    config = AudioAugmentationConfig(color_noise_prob=0, extra_transforms=["a.B"], extra_transforms_prob=0)
    assert dict(left_out(config)) == {
        "Background noise": "audio_augmentation.bg_noise_file_list is empty: name files or folders there to hear it",
        "Coloured noise": "audio_augmentation.color_noise_prob is 0",
        "B": "audio_augmentation.extra_transforms_prob is 0",
    }


def test_settings_that_differ_are_listed_without_secrets():
    config = Config(redis=RedisConfig(url="redis://user:secret@host:1"), data=DataConfig(seed=7))
    listed = {setting.name: setting.value for setting in changed_settings(config)}
    assert listed.keys() == {"redis.url", "data.seed"}
    assert "secret" not in str(listed)


@pytest.mark.parametrize(
    ("model", "bins"), [("tiny.en", 80), ("medium", 80), ("large-v2", 80), ("large-v3-turbo", 128)]
)
def test_the_features_of_openais_models_need_no_network(model, bins):
    assert feature_spec(f"openai/whisper-{model}").num_mel_bins == bins


@pytest.mark.parametrize("multiple_aug", [False, True])
def test_a_position_shows_exactly_the_sample_that_the_producer_makes(make_recipe, multiple_aug):
    recipe = make_recipe(
        {"epochs": 2, "augmented_copies": 2}, {"multiple_aug": multiple_aug, "bg_noise_file_list": [NOISE]}
    )
    positions = range(0, len(recipe.plan), 2)
    worker, made = SampleWorker(recipe.for_workers()), PositionPreview(recipe)
    steps = 0
    for position in positions:
        sample, watcher, _, failures = made.make(position)
        assert encode_sample(sample) == worker.make(recipe.tasks(position, position + 1)).payloads[0]
        assert len(watcher.heard) == round(sample.duration_s * RATE)
        assert failures == []
        assert [str(trace.step) for trace in watcher.traces] == sample.augmentation.split("+")[: len(watcher.traces)]
        steps += len(watcher.traces)
    assert steps > len(positions) / 3


@pytest.mark.usefixtures("undrawn")
def test_a_position_whose_recording_is_gone_shows_the_one_that_stands_in(make_recipe):
    recipe = make_recipe()
    (task,) = recipe.tasks(3, 4)
    Path(task.recordings[0].audio).unlink()
    chapter = PositionPreview(recipe).chapter(3)
    assert "can't be decoded: file not found." in chapter.notes[0]
    assert dict(chapter.facts)["Recording"] != task.recordings[0].id


@pytest.mark.usefixtures("undrawn")
def test_positions_are_found_by_the_flags_of_the_scripts(make_recipe):
    config = make_recipe({"epochs": 1}).config
    chapters = preview_positions(config, [0, 4])
    assert [chapter.title for chapter in chapters] == ["Position 0", "Position 4"]
    (original,) = chapters[0].sections[0].cards
    assert (original.label, original.title) == ("original", "The sample: the recording as it is")
    recording, sample = chapters[1].sections[0].cards
    title = WORDS[sample.label.partition("=")[0]].title
    assert (recording.title, sample.title) == ("The recording", f"The sample: {title}")
    assert [name for name, _ in sample.facts] == [title]
    assert chapters[1].sections[0].settings[0].name.startswith("audio_augmentation.")
    facts = dict(chapters[0].facts)
    assert facts["Transcript"] == f"text {facts['Recording'][1:]}"
    with pytest.raises(UserError, match="--position 24: expected a position of the plan, 0 to 23"):
        preview_positions(config, [24])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to preview: name audio files, or positions of the plan with --position"),
        (["absent.flac"], "cannot preview absent.flac: file not found"),
        (["."], "cannot preview .: a folder, not an audio file"),
        ([__file__], "cannot preview .*: not readable as audio"),
        (["x.flac", "--audio_augmentation.bg_noise_file_list", "nowhere"], "no background noise at nowhere"),
        (["x.flac", "--audio_augmentation.extra_transforms", "no.Such"], "cannot import no"),
        (["x.flac", "--audio_augmentation.sample_rate", "8000"], "8000 Hz but the model takes 16000 Hz"),
        (["x.flac", "--model.model_name", "/nowhere"], "cannot load model.model_name '/nowhere'"),
        (["--position", "1", "--data.train_manifest", "nowhere.csv"], "nowhere.csv"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_one_line(arguments, message, tmp_path, monkeypatch):
    rooms = ["--data.cache_dir", str(tmp_path), "--audio_augmentation.far_field_effect_prob", "0"]
    monkeypatch.setattr(sys, "argv", ["preview", *arguments, *rooms])
    with pytest.raises(UserError, match=message) as caught:
        preview.main()
    assert "\n" not in str(caught.value)


def test_the_command_writes_a_page_and_says_where(tmp_path):
    off = [f"--audio_augmentation.{name}_prob=0" for name in ("far_field_effect", "bg_noise_aug", "color_noise")]
    few = ["--audio_augmentation.speed_factors=0.9", "--audio_augmentation.down_upsampling_min_max=4000"]
    command = [sys.executable, "-m", "tools.preview", FILE, *off, *few, "--data.cache_dir", str(tmp_path)]
    good = subprocess.run(
        [*command, "--output", str(tmp_path / "a.html")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert good.returncode == 0, good.stderr
    assert re.fullmatch(r".*a\.html: 7 sounds, 0\.\d MB\. Open it in a browser\.\n", good.stdout)
    assert "Warning" not in good.stderr
    assert (tmp_path / "a.html").read_text(encoding="utf-8").count("<audio") == 7


def test_the_programs_own_flags_keep_the_scripts_settings(tmp_path):
    settings = Settings(files=[FILE], data=DataConfig(seed=3))
    assert settings.config() == Config(data=DataConfig(seed=3))
