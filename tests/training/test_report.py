"""The command that the closing report tells to copy works in a shell, whatever the folder is called."""

from __future__ import annotations

import ast
import shlex
import subprocess
from pathlib import Path

import pytest

from training.report import transcription_command


@pytest.mark.parametrize(
    "name",
    ["out", "a b", "it's", 'say "hi"', "`date`", "$HOME", "$(id)", "back\\slash", "!!", "both'\"`$\\!", "বাংলা", "a\nb"],
)
def test_the_command_reaches_python_unchanged_through_a_shell(name):
    folder, recording = Path("/models") / name, f"{name}.ogg"
    command = transcription_command(folder, recording)
    shown = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, check=True, text=True
    ).stdout.split("\0")
    assert shown[:2] == ["python", "-c"]
    assert shlex.split(command) == shown[:3]
    constants = [node.value for node in ast.walk(ast.parse(shown[2])) if isinstance(node, ast.Constant)]
    assert str(folder) in constants
    assert recording in constants
