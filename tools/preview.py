"""Makes a page on which augmentations can be heard and seen: the original and each augmentation with each option.

    python -m tools.preview clips/0001.flac --output preview.html
    python -m tools.preview --position 1234 5678 --data.train_manifest train.csv --model.model_name MODEL

The first form takes audio files and any flag of the scripts, such as --audio_augmentation.speed_factors 0.7 1.4. The
second makes exactly the samples that the producer makes at these positions of the plan with the same flags. The page
is one file that loads nothing; open it in any browser.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

import audioaugmentations
from common import command_line
from common.errors import UserError
from config import Config
from pages.page import write_page
from pages.preview_page import PreviewPage, Setting
from tools.preview_files import FilePreview, left_out
from tools.preview_positions import preview_positions


@dataclass
class Settings(Config):
    """What the command line sets: every flag of the scripts, and these."""

    files: tyro.conf.Positional[list[str]] = field(default_factory=list)
    """Audio files or URLs. Of one longer than the model's window, its first window is shown."""
    output: str = "preview.html"
    """The page."""
    position: list[int] = field(default_factory=list)
    """Positions of the plan, from 0, whose samples are shown, in addition to FILES."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.files and not self.position:
            raise UserError("nothing to preview: name audio files, or positions of the plan with --position")

    def config(self) -> Config:
        """The settings of the scripts."""
        return Config(self.redis, self.data, self.model, self.audio_augmentation)


def main() -> None:
    """Makes the page and says where it is."""
    settings = command_line.parse(Settings, __doc__ or "")
    config = settings.config()
    audioaugmentations.check(config.audio_augmentation)
    page = make_page(config, settings.files, settings.position)
    write_page(Path(settings.output), page.html(), "choose another --output")
    size_mb = Path(settings.output).stat().st_size / 1e6
    sounds = sum(len(section.cards) for chapter in page.chapters for section in chapter.sections)
    print(f"{settings.output}: {sounds} sounds, {size_mb:.1f} MB. Open it in a browser.")


def make_page(config: Config, files: Sequence[str], positions: Sequence[int]) -> PreviewPage:
    """All that is shown.

    Raises:
        UserError: a file can't be decoded, or the plan has no such position; and as the scripts.
    """
    facts = [("Model", config.model.model_name), ("Seed", str(config.data.seed))]
    page = PreviewPage(chapters=[], facts=facts, changed=changed_settings(config))
    if files:
        preview = FilePreview(config)
        chapters = [preview.chapter(number, file) for number, file in enumerate(files)]
        page = replace(page, chapters=chapters, left_out=left_out(config.audio_augmentation))
    if positions:
        page = replace(page, chapters=[*page.chapters, *preview_positions(config, positions)])
    return page


def changed_settings(config: Config) -> list[Setting]:
    """The settings that are not the defaults of config.py, without secrets."""
    found, defaults = config.to_dict(), Config().to_dict()
    return [
        Setting(f"{group}.{name}", json.dumps(value, ensure_ascii=False))
        for group, values in found.items()
        for name, value in values.items()
        if value != defaults[group][name]
    ]


if __name__ == "__main__":
    command_line.run(main)
