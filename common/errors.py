"""Errors whose remedy is in the user's hands."""

from __future__ import annotations


class UserError(Exception):
    """A failure whose remedy is in the user's hands. The scripts print it as one line and exit with code 2."""


class ConfigurationError(UserError, ValueError):
    """A setting, or a combination of settings, that cannot work."""
