"""One core, the same clips, in one run: this project beside what a user would take instead.

    python benchmarks/compare.py                       # all; --json FILE writes the figures as well
    python benchmarks/compare.py original hugging_face # some of: original, hugging_face, lhotse, memory

In each round the floor, ours and the peer take turns; ratios are taken round by round, and their median counts. See
benchmarks/peers/ for what each does; lhotse needs requirements-bench.txt.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import soundfile
import tyro

from audio.room_acoustics import load_room_bank
from benchmarks.clips import make_clips, read_texts, write_noise
from benchmarks.harness import Figure, clips_recipe, embedded, furnish, pinned, race, report, write_json
from benchmarks.peers.floor import Floor
from benchmarks.peers.ours import Producer, Worker
from producing.plan_card import make_card
from producing.worker_pool import SampleMaker
from sample_queue.connection import make_client
from sample_queue.writer import SampleWriter

LIMIT_GB = 2.0


@dataclass
class Settings:
    """What the command line sets."""

    what: tyro.conf.Positional[tuple[str, ...]] = ("original", "hugging_face", "lhotse", "memory")
    """Which comparisons to make."""
    json: Path | None = None
    """File for the figures."""
    rounds: int = 15
    """Rounds of each comparison."""
    samples: int = 256
    """Samples per round and contestant; a slow peer makes an eighth of them."""
    stored: int = 256
    """Samples that are stored to measure memory."""


class Bench:
    """The clips, and what each contestant needs of them."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.checkpoint = furnish(folder)
        self.mean_s = make_clips(folder / "clips")
        self.files, self.texts = sorted((folder / "clips").glob("*.flac")), read_texts(folder / "clips")
        self.recipe = clips_recipe(folder, folder / "clips", epochs=1000)
        self.maker = SampleMaker(self.recipe)
        self.noise = folder / "noise"
        write_noise(self.noise)

    def original(self) -> list[Figure]:
        """Ours, pushing included, beside the original recipe; and the share of the floor that a worker reaches."""
        import torch

        from benchmarks.peers.original_recipe import OriginalRecipe

        torch.set_num_threads(1)
        many, few = self.settings.samples, max(2, self.settings.samples // 8)
        with embedded(LIMIT_GB) as config, pinned():
            writer = SampleWriter(config, make_card(self.recipe))
            original = OriginalRecipe(self.files, self.texts, self.checkpoint, self.noise, make_client(config))
            rates = race(
                {
                    "floor": (Floor(self.files), many),
                    "one worker": (Worker(self.maker), many),
                    "one process that also pushes": (Producer(self.maker, writer), many),
                    "original recipe": (original, few),
                },
                self.settings.rounds,
            )
            writer.close()
        return [
            *(rates.rate(name) for name in rates.rounds),
            rates.ratio("one process that also pushes", "original recipe", at_least=10),
            rates.ratio("one worker", "floor", at_least=0.45),
        ]

    def hugging_face(self) -> list[Figure]:
        """Ours beside the usual Hugging Face way."""
        from benchmarks.peers.hugging_face_way import HuggingFaceWay, write_responses

        many, few = self.settings.samples, max(2, self.settings.samples // 8)
        config, spec = self.recipe.config, self.recipe.spec
        augmentation = config.audio_augmentation
        bank = load_room_bank(
            Path(config.data.cache_dir),
            augmentation.far_field_distances,
            augmentation.far_field_rooms,
            spec.sampling_rate,
        )
        write_responses(bank, spec, self.folder / "responses")
        everywhere = os.sched_getaffinity(0)
        with pinned() as cores:
            peer = HuggingFaceWay(
                self.files, self.texts, self.checkpoint, self.noise, self.folder / "responses", everywhere, min(cores)
            )
            rates = race(
                {
                    "floor": (Floor(self.files), many),
                    "one worker": (Worker(self.maker), many),
                    "usual Hugging Face way": (peer, few),
                },
                self.settings.rounds,
            )
            peer.close()
        return [
            *(rates.rate(name) for name in rates.rounds),
            rates.ratio("one worker", "usual Hugging Face way", at_least=4),
        ]

    def lhotse(self) -> list[Figure]:
        """Ours beside lhotse, on the chain that both have."""
        import torch

        from benchmarks.peers.lhotse_way import LhotseWay, OursOnTheSameChain

        torch.set_num_threads(1)
        many, noise = self.settings.samples, sorted(self.noise.iterdir())
        with pinned():
            rates = race(
                {
                    "floor": (Floor(self.files), many),
                    "ours, shared chain": (OursOnTheSameChain(self.files, noise, self.recipe.spec), many),
                    "lhotse, shared chain": (LhotseWay(self.files, noise), many),
                },
                self.settings.rounds,
            )
        return [
            *(rates.rate(name) for name in rates.rounds),
            rates.ratio("ours, shared chain", "lhotse, shared chain", at_least=1.5),
        ]

    def memory(self) -> list[Figure]:
        """Memory of a real server per sample of 4.7 s mean, all overheads in: ours, and the original recipe's."""
        from benchmarks.peers.original_recipe import OriginalRecipe

        folder, count = self.folder / "clips 4.7 s", self.settings.stored
        mean_s = make_clips(folder, 2.7, 6.7)
        recipe = clips_recipe(self.folder, folder, epochs=1000)
        maker, per_sample = SampleMaker(recipe), {}
        with embedded(LIMIT_GB) as config:
            writer = SampleWriter(config, make_card(recipe))
            producer, client = Producer(maker, writer), make_client(config)
            empty = client.info("memory")["used_memory"]
            producer.make(count)
            per_sample["ours"] = (client.info("memory")["used_memory"] - empty) / count / 1000
            files, texts = sorted(folder.glob("*.flac")), read_texts(folder)
            original = OriginalRecipe(files, texts, self.checkpoint, self.noise, client)
            empty = client.info("memory")["used_memory"]
            for number in range(count):
                waveform, _ = soundfile.read(files[number % len(files)], dtype="float32")
                original.store(f"original:{number}", waveform, texts[number % len(texts)])
            per_sample["original recipe"] = (client.info("memory")["used_memory"] - empty) / count / 1000
            writer.close()
        return [
            Figure("mean clip", mean_s, "s"),
            Figure("Redis memory per sample, ours", per_sample["ours"], "kB"),
            Figure("Redis memory per sample, original recipe", per_sample["original recipe"], "kB"),
            Figure("original recipe / ours", per_sample["original recipe"] / per_sample["ours"], "x", at_least=12),
        ]


def measure(settings: Settings) -> list[Figure]:
    """Makes the comparisons and prints each as it is done."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary), settings)
        for what in sorted(settings.what, key=lambda what: what != "hugging_face"):  # forks, so before torch computes
            print(f"-- {what}", flush=True)
            found = getattr(bench, what)()
            report(found)
            figures += found
    return figures


def main() -> None:
    """Measures, prints, writes."""
    settings = tyro.cli(Settings, description=__doc__)
    write_json(measure(settings), settings.json)


if __name__ == "__main__":
    main()
