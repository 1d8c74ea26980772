"""Why an audio file is not where the manifest says, and where it is: for the reasons in the rejected report."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import unquote

from storage.remote_files import join

SUBFOLDERS = ("clips", "wavs", "wav", "audio", "data", "flac", "train")
"""Where corpora keep their audio beside the manifest."""
ENDINGS = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")


def describe_missing(root: str, name: str) -> str:
    """What to say of an audio file that is not there: the path that was looked for, and where there is one like it.

    Args:
        root: folder of the manifest.
        name: the audio as in the manifest.
    """
    looked_for = join(root, name)
    for candidate, hint in _candidates(root, name):
        if os.path.isfile(candidate):
            return f"{looked_for} ({hint})"
    return looked_for


def _candidates(root: str, name: str) -> Iterator[tuple[str, str]]:
    """Paths at which the file may be meant to be, each with the hint to give when it is there."""
    slashed = name.replace("\\", "/").removeprefix("./")
    if slashed != name:
        yield join(root, slashed), r"it is there with / in place of \ in its name"
    if name.strip() != name:
        yield join(root, name.strip()), "it is there without the spaces around its name"
    if name.startswith("~"):
        yield os.path.expanduser(name), "~ is not expanded in manifests; write the whole path"
    if unquote(name) != name:
        yield join(root, unquote(name)), "it is there without the %-escapes"
    base = slashed.strip().lstrip("/")
    for folder in SUBFOLDERS:
        yield os.path.join(root, folder, base), f"it is under {folder}/: put {folder}/ before the names in the manifest"
    for parent in (os.path.dirname(root), os.path.dirname(os.path.dirname(root))):
        place = os.path.join(parent, base)
        yield place, f"it is at {place}; relative names start at the manifest's own folder"
    beside = os.path.join(root, os.path.basename(base))
    yield beside, f"it is at {beside}; relative names start at the manifest's own folder"
    for ending in ENDINGS:
        yield join(root, slashed + ending), f"it is there with {ending} at the end of its name"
    path = join(root, slashed.strip())
    for similar in _listing(os.path.dirname(path)).get(_key(os.path.basename(path)), ()):
        hint = f"there is {os.path.basename(similar)!r}, in another case, Unicode form or kind of spaces"
        yield similar, hint


@lru_cache(maxsize=16)
def _listing(folder: str) -> dict[str, tuple[str, ...]]:
    """Files of a folder by what is the same in all writings of their names."""
    found: dict[str, tuple[str, ...]] = {}
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        found[_key(name)] = (*found.get(_key(name), ()), os.path.join(folder, name))
    return found


def _key(name: str) -> str:
    return "".join(unicodedata.normalize("NFKC", name).casefold().split())
