"""How a program ends tells its caller what happened."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.command_line import parse
from config import Config

ROOT = Path(__file__).parents[2]


def program(body: str) -> list[str]:
    imports = "import time\nfrom common.command_line import run\nfrom common.errors import UserError"
    source = f"{imports}\ndef main():\n    {body}\nrun(main)"
    return [sys.executable, "-c", source]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("pass", 0, ""),
        ("raise UserError('no such file: x; make it')", 2, "error: no such file: x; make it\n"),
    ],
)
def test_an_expected_failure_is_one_line_and_code_2(body, code, message):
    result = subprocess.run(program(body), capture_output=True, text=True, cwd=ROOT, check=False)
    assert (result.returncode, result.stderr) == (code, message)


def test_an_unexpected_failure_keeps_its_traceback():
    result = subprocess.run(program("1 / 0"), capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_end_a_program_with_their_code(number, code):
    with subprocess.Popen(
        program("print('up', flush=True); time.sleep(60)"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        started = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=10) == code
        assert time.monotonic() - started < 5
        assert process.stderr.read().decode() == f"stopped by {number.name}\n"


@pytest.mark.parametrize("manifest", ["hf://org/name@main:train", "https://user:word@host/train.csv"])
def test_a_manifest_address_with_an_at_sign_arrives_as_it_was_given(manifest):
    config = parse(Config, "", ["--data.train_manifest", manifest, "--redis.url=redis://:word@host"])
    assert (config.data.train_manifest, config.redis.url) == (manifest, "redis://:word@host")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--redis.urll=redis://:my secret@host"],
        ["--redis.port", "redis://:secret@host:1"],
        ["--data.train_manifestt", "https://me:secret@host/train.csv?sig=secret"],
        ["redis://:secret@host"],
    ],
    ids=["unknown flag", "number expected", "unknown flag with a manifest", "no flag"],
)
def test_a_misplaced_url_is_refused_without_its_secrets(arguments, capsys):
    with pytest.raises(SystemExit) as refusal:
        parse(Config, "", arguments)
    shown = "".join(capsys.readouterr())
    assert refusal.value.code == 2
    assert "://" in shown
    assert "secret" not in shown
