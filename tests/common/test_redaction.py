"""No message, log or saved setting shows a user, a password or a query, however wrongly the URL is written."""

from __future__ import annotations

import pytest

from common.errors import ConfigurationError
from common.redaction import text_without_secrets, without_secrets
from config import Config, DataConfig, ModelConfig, RedisConfig


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://me:secret@host:1/0", "redis://host:1/0"),
        ("rediss://:secret@[::1]:1", "rediss://[::1]:1"),
        ("redis://host:1?password=secret&username=me", "redis://host:1"),
        ("unix:///run/redis.sock?password=secret#secret", "unix:///run/redis.sock"),
        ("redis://:sec@secret@host:1", "redis://host:1"),
        ("redis://:sec\u2100secret@host:1", "redis://host:1"),
        ("redis://:un/secret@host:1", "redis://…"),
        ("redis://:un?secret@host:1", "redis://…"),
        ("redis://:un#secret@host:1", "redis://…"),
        ("redis://:secret", "redis://…"),
        ("redis://me:secret", "redis://…"),
        ("redis://host", "redis://host"),
        ("", ""),
    ],
)
def test_of_a_redis_url_scheme_host_port_and_path_are_shown(address, shown):
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:secret@host/a.flac?X-Amz-Signature=secret#x", "https://host/a.flac#x"),
        ("https://host/a.parquet?sig=secret#audio.bytes/3/17/8f", "https://host/a.parquet#audio.bytes/3/17/8f"),
        ("https://host/a.flac#x?sig=secret", "https://host/a.flac#x"),
        ("simplecache::https://me:secret@host:99/a.zip?sig=secret", "simplecache::https://host:99/a.zip"),
        ("zip://a.csv::https://me:secret@host/a.zip", "zip://…"),
        ("https://me:un/secret@host/a.flac", "https://…"),
        ("https://me:un?secret@host/a.flac", "https://…"),
        ("https://me:un#secret@host/a.flac", "https://…"),
        ("http://[bad/a.flac", "http://[bad/a.flac"),
        ("http://minio:9000/bucket/clip@2.flac?sig=secret", "http://minio:9000/bucket/clip@2.flac"),
        ("s3://bucket/train@2/*.parquet", "s3://bucket/train@2/*.parquet"),
        ("hf://org/name@revision/config:split", "hf://org/name@revision/config:split"),
        ("hf://name@revision:split", "hf://name@revision:split"),
        ("/data/a?b@c.flac", "/data/a?b@c.flac"),
    ],
)
def test_the_url_of_a_file_keeps_its_path_and_fragment(address, shown):
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--redis.urll=redis://:my secret @host:1", "--redis.urll=redis://host:1"),
        ("redis://host?password=my secret", "redis://host"),
        ("redis://:un://secret@host", "redis://…"),
        ("404, message='Not Found', url=URL('http://me:secret@host/a?sig=secret')",
         "404, message='Not Found', url=URL('http://host/a')"),
        ("no \"http://me:un'secret@host/a?sig=secret\" there?", 'no "http://host/a" there?'),
        ("http://host/x,https://me:secret@host/y", "http://host/x,https://host/y"),
        ("http://host/?next=https://me:secret@host end", "http://host/https://host end"),
        ("cannot sign /bucket/key?X-Amz-Signature=secret (why?)", "cannot sign /bucket/key (why?)"),
        ("a mail to me@host, is it?", "a mail to me@host, is it?"),
    ],
)  # fmt: skip
def test_a_text_loses_the_secrets_of_the_urls_in_it(text, shown):
    assert text_without_secrets(text) == shown


def test_settings_are_shown_and_saved_without_secrets():
    config = Config(
        redis=RedisConfig(url="redis://:secret@host:1"),
        data=DataConfig(
            train_manifest="https://me:secret@host/a@b.csv?sig=secret", eval_manifest="hf://name@main:test"
        ),
        model=ModelConfig(trainer_arguments={"hub_token": "secret", "report_to": "tensorboard"}),
    )
    settings = config.to_dict()
    assert "secret" not in str(settings)
    assert settings["redis"]["url"] == "redis://host:1"
    assert settings["data"]["train_manifest"] == "https://host/a@b.csv"
    assert settings["data"]["eval_manifest"] == "hf://name@main:test"
    assert settings["model"]["trainer_arguments"]["report_to"] == "tensorboard"


def test_a_url_given_as_the_host_is_refused_without_its_secrets():
    with pytest.raises(ConfigurationError, match=r"redis.host is redis://host:1: give a URL as --redis.url"):
        RedisConfig(host="redis://:secret@host:1")
