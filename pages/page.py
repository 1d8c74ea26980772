"""How a page is made of a template and written to a file.

A page is one file that loads nothing: it opens without a network, and its Content-Security-Policy forbids whatever a
file name or a transcript might try to bring in.
"""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common.errors import UserError
from common.files import cannot_write, written_whole

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **values: object) -> str:
    """A whole page.

    Args:
        template: file name in `templates`; it extends `base.html`.
        values: what the template names. Text is escaped; a value that the template needs must be there.
    """
    return _environment().get_template(template).render(values)


def write_page(path: Path, html: str, remedy: str) -> None:
    """Writes a page; a reader finds the old one or all of the new.

    Args:
        path: the file.
        html: its content.
        remedy: what to do where it can't be written: "choose another --output".

    Raises:
        UserError: the file can't be written.
    """
    try:
        with written_whole(path) as file:
            file.write(html.encode())
    except OSError as error:
        raise cannot_write(UserError, path, error, remedy) from error


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    environment.globals.update(script=script, script_digest=digest, style=style)
    return environment
