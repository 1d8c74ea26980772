"""Settings come from the dataclasses or the command line; what cannot work is refused at once."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from common.command_line import parse
from common.errors import ConfigurationError, UserError
from config import AudioAugmentationConfig, Config, DataConfig, ModelConfig, RedisConfig

GROUPS = {"redis": RedisConfig, "data": DataConfig, "model": ModelConfig, "audio_augmentation": AudioAugmentationConfig}
ROOT = Path(__file__).parent.parent


def test_the_predecessors_values_are_the_defaults():
    config = Config()
    assert (config.redis.host, config.redis.port, config.redis.max_memory_gb) == ("localhost", 6380, 49.0)
    assert (config.model.model_name, config.model.language) == ("openai/whisper-medium", "Bengali")
    assert (config.model.warmup_steps, config.model.metric_for_best_model, config.model.greater_is_better) == (
        888,
        "cer",
        False,
    )
    assert config.audio_augmentation.speed_factors == [0.75, 0.8, 0.9, 1.1, 1.25, 1.5]
    assert config.audio_augmentation.down_upsampling_min_max == [2000, 4000, 8000]


def test_configurations_share_no_list():
    one, other = Config(), Config()
    one.audio_augmentation.speed_factors.append(9.0)
    one.model.trainer_arguments["x"] = 1
    assert other == Config()


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_has_a_flag_and_a_line_of_help(group, capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(Config, "A program.", ["--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(GROUPS[group]):
        assert re.search(rf"--{group}\.{field.name}\b[^\n]*\n[│ ]+\S", text), f"no help for {group}.{field.name}"


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_is_read_by_some_module(group):
    sources = [path.read_text() for pattern in ("*.py", "[a-z]*/*.py") for path in ROOT.glob(pattern)]
    config_source = (ROOT / "config.py").read_text()
    properties = re.findall(
        r"@property\n    def (\w+)\(self\)[^\n]*\n(.*?)(?=\n    @|\n    def |\n\n\n)", config_source, re.S
    )
    for field in dataclasses.fields(GROUPS[group]):
        through = [name for name, body in properties if f"self.{field.name}" in body]
        names = "|".join([field.name, *through])
        others = [source for source in sources if source != config_source]
        assert any(re.search(rf"""[.\"'](?:{names})\b""", source) for source in others), (
            f"{group}.{field.name} is never read"
        )


def test_flags_of_every_kind_are_understood():
    flags = """
        --redis.port 6390 --redis.max_memory_gb 0.2 --redis.embedded False
        --data.feature_dtype float32
        --audio_augmentation.multiple_aug True --audio_augmentation.speed_factors 0.9 1.1
        --model.trainer_arguments max_grad_norm 0.5 use_cpu True report_to tensorboard seed 3
    """
    config = parse(Config, "", flags.split())
    assert config.redis == RedisConfig(port=6390, max_memory_gb=0.2, embedded=False)
    assert config.data.feature_dtype == "float32"
    assert config.audio_augmentation.multiple_aug is True
    assert config.audio_augmentation.speed_factors == [0.9, 1.1]
    assert config.model.trainer_arguments == {
        "max_grad_norm": 0.5,
        "use_cpu": True,
        "report_to": "tensorboard",
        "seed": 3,
    }


def test_an_unknown_flag_is_an_error_that_suggests_the_right_one(capsys):
    with pytest.raises(SystemExit) as exit_:
        parse(Config, "", ["--redis.prot", "6390"])
    assert exit_.value.code == 2
    assert "--redis.port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("group", "settings", "message"),
    [
        ("redis", {"port": 0}, "redis.port is 0"),
        ("redis", {"max_memory_gb": 0}, "redis.max_memory_gb"),
        ("redis", {"namespace": " "}, "redis.namespace"),
        ("redis", {"url": "http://somewhere"}, "http://"),
        ("data", {"epochs": 0}, "data.epochs"),
        ("data", {"seed": -1}, "data.seed"),
        ("data", {"executor": "10.0.0.1:8786"}, "data.executor is '10.0.0.1:8786': expected the address of a Dask"),
        ("data", {"executor": "tcp://somewhere"}, "tcp://host:port"),
        ("data", {"executor": "tcp://somewhere:99999"}, "tcp://host:port"),
        ("data", {"max_rejected_fraction": 1.5}, "data.max_rejected_fraction"),
        ("data", {"min_duration_s": 5, "max_duration_s": 5}, "data.max_duration_s"),
        ("data", {"include_original": False, "augmented_copies": 0}, "no sample"),
        ("model", {"save_total_limit": 1}, "at least 2"),
        ("model", {"metric_for_best_model": "bleu"}, "cer, wer"),
        ("model", {"predict_with_generate": False}, "predict_with_generate"),
        ("model", {"max_steps": 0}, "max_steps"),
        ("model", {"greater_is_better": True}, "the lowest error is the best"),
        ("model", {"trainer_arguments": {"learning_rate": 1.0}}, "model.learning_rate"),
        ("audio_augmentation", {"speed_aug_prob": 1.1}, "speed_aug_prob"),
        ("audio_augmentation", {"speed_factors": [0.0]}, "speed_factors"),
        ("audio_augmentation", {"speed_factors": []}, "speed_factors is empty"),
        ("audio_augmentation", {"noise_colors": ["mauve"]}, "mauve"),
        ("audio_augmentation", {"down_upsampling_min_max": [20_000]}, "down_upsampling"),
    ],
)
def test_a_contradiction_is_refused_by_name(group, settings, message):
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        GROUPS[group](**settings)


def test_the_best_model_needs_a_checkpoint_at_its_evaluation():
    model = ModelConfig(save_steps=30, eval_steps=20)
    Config(model=model)  # without an evaluation there is no best model
    with pytest.raises(ConfigurationError, match="multiple of"):
        Config(data=DataConfig(eval_manifest="eval.csv"), model=model)


def test_an_option_list_may_be_empty_when_its_augmentation_is_off():
    AudioAugmentationConfig(speed_factors=[], speed_aug_prob=0)


@pytest.mark.parametrize(
    "url", ["redis://me:hunter2@host:1/0", "rediss://:hunter2@host:1", "redis://host:1?password=hunter2&username=me"]
)
def test_secrets_are_neither_saved_nor_shown(url, tmp_path):
    config = Config(redis=RedisConfig(url=url))
    config.save(tmp_path / "out" / "config.json")
    text = (tmp_path / "out" / "config.json").read_text()
    assert "hunter2" not in text + config.redis.address
    assert json.loads(text)["redis"]["url"].endswith("host:1/0" if url.endswith("/0") else "host:1")


def test_an_output_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*--model\.output_dir"):
        Config().save(tmp_path / "file" / "config.json")
