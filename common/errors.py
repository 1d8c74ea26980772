"""Errors whose remedy is in the user's hands."""

from __future__ import annotations


class UserError(Exception):
    """A failure whose remedy is in the user's hands. The scripts print it as one line and exit with code 2."""


class ConfigurationError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


def one_line(error: object, longest: int = 300) -> str:
    """What an error says, as a single line.

    Args:
        error: an exception, or its text.
        longest: characters after which it is cut off.
    """
    return " ".join(str(error).split())[:longest]
