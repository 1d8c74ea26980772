"""What the programs share at the command line: flags from the dataclasses, logging, and how a program ends.

Exit codes: 0 done; 2 a failure that the user can mend, told in one line; 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import NoReturn, TypeVar, get_args, get_type_hints

import tyro

from common.errors import UserError
from common.redaction import text_without_secrets

logger = logging.getLogger(__name__)

C = TypeVar("C")


class Interruption(SystemExit):
    """SIGTERM or Ctrl-C asked the program to end.

    No subclass of `Exception`, so that no library catches it; a `SystemExit`, because tqdm's log handler catches all
    others.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def parse(settings: type[C], description: str, arguments: Sequence[str] | None = None) -> C:
    """Reads a dataclass from the command line: a flag for each field, nested by group; booleans take True or False.

    Args:
        settings: the dataclass.
        description: text above the flags in `--help`.
        arguments: what follows the program's name; None: the process's own.

    Raises:
        SystemExit: code 0 after `--help`; code 2 after an unknown flag, with the nearest known one.
        ConfigurationError: a value, or a combination of values, that cannot work.
    """
    given = _without_misplaced_secrets(sys.argv[1:] if arguments is None else arguments, settings)
    return tyro.cli(
        settings, description=description, args=given, config=(tyro.conf.FlagConversionOff,), use_underscores=True
    )


def with_flag_values(arguments: Sequence[str], *names: str) -> list[str]:
    """The arguments, with `--name` alone written as `--name=True` for these booleans."""
    flags, following = {f"--{name}" for name in names}, [*arguments[1:], ""]
    return [
        f"{argument}=True" if argument in flags and after not in ("True", "False") else argument
        for argument, after in zip(arguments, following, strict=True)
    ]


def _without_misplaced_secrets(arguments: Sequence[str], settings: type) -> list[str]:
    """The arguments, with secrets cut out of those that no text field takes: the error about them will quote them."""
    text_flags, shown, flag = _text_flags(settings), [], ""
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument.partition("=")[0].replace("-", "_")
        shown.append(argument if flag in text_flags else text_without_secrets(argument))
    return shown


def _text_flags(settings: type, prefix: str = "__") -> set[str]:
    """The flags of those fields of a dataclass that hold text, with _ for each -; nested by group."""
    flags: set[str] = set()
    for name, kind in get_type_hints(settings).items():
        if dataclasses.is_dataclass(kind):
            flags |= _text_flags(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
        elif kind is str or str in get_args(kind):  # also list[str] and dict[str, …]
            flags.add(f"{prefix}{name}")
    return flags


def run(main: Callable[[], None]) -> NoReturn:
    """Runs a program's `main` and ends the process with the exit code of its outcome."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
    )
    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)
    try:
        main()
        code = 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except Interruption as interruption:
        print(f"stopped by {interruption}", file=sys.stderr)
        code = interruption.exit_code
    except BrokenPipeError:  # the reader of our output (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def interrupt(signal_number: int, frame: FrameType | None) -> NoReturn:
    """The signal handler that `run` sets: raises `Interruption`, once.

    A SIGTERM often comes twice, to the process and to its group: the second is ignored, as the program is ending in
    order. A second Ctrl-C ends the program at once.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise Interruption(signal_number)


def log_settings(settings: Mapping[str, object]) -> None:
    """Logs settings, a line per group.

    Args:
        settings: by group, without secrets (`Config.to_dict`).
    """
    for group, values in settings.items():
        logger.info("%s: %s", group, json.dumps(values, ensure_ascii=False))
