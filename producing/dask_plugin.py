"""What a Dask worker gets from the producer: the project's code, the recipe, and the way to make samples by them.

It goes there by value, as source and data. So a Dask worker needs the packages of requirements-cluster.txt, but neither
a checkout of this project nor the same version of it as yesterday, and the scheduler needs nothing at all.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
import platform
import socket
import sys
import threading
import zipfile
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import Worker, WorkerPlugin, get_worker

if TYPE_CHECKING:  # a worker loads this module before it has the project's others
    from producing.sample_worker import Chunk, SampleTask, WorkerRecipe

PACKAGES = ("numpy", "scipy", "soundfile", "soxr", "miniaudio", "tokenizers", "safetensors")
"""Packages that decide the bytes of a sample."""
AUDIOMENTATIONS_PACKAGES = ("audiomentations", "librosa", "numpy-minmax", "numpy-rms", "python-stretch")
"""The same where `audio_augmentation.extra_transforms` names audiomentations: itself, and what it computes with."""
ROOMS = ("common", "storage", "audio", "features", "corpus", "producing")
"""Packages of the project that a worker needs."""
MODULES = ("config", "audioaugmentations", "data_processor")
"""Modules beside them that a worker needs."""
CODE_MARK = "dynamic-whisper-code-"
"""Beginning of the names of the archives that hold the project's code."""


def project_code() -> bytes:
    """The part of the project that workers need, as a zip archive. Equal code makes equal bytes."""
    root = Path(__file__).parent.parent
    paths = [path for room in ROOMS for path in root.glob(f"{room}/*.py")] + [root / f"{name}.py" for name in MODULES]
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(paths):
            file.writestr(zipfile.ZipInfo(path.relative_to(root).as_posix()), path.read_bytes())
    return archive.getvalue()


def deciding_packages(extra_transforms: Sequence[str]) -> tuple[str, ...]:
    """Packages that decide the bytes of the samples.

    Args:
        extra_transforms: `audio_augmentation.extra_transforms`.
    """
    uses_audiomentations = any(text.split()[0].startswith("audiomentations.") for text in extra_transforms)
    return PACKAGES + (AUDIOMENTATIONS_PACKAGES if uses_audiomentations else ())


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of Python and of packages, by name; "none" for a package that is missing."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


class SamplePlugin(WorkerPlugin):
    """Makes samples in a Dask worker. Each thread has a `SampleWorker` of its own."""

    def __init__(self, recipe: WorkerRecipe) -> None:
        packages = deciding_packages(recipe.config.audio_augmentation.extra_transforms)
        self._code, self._versions, self._recipe = project_code(), versions(packages), pickle.dumps(recipe)

    def setup(self, worker: Worker) -> None:
        """Dask calls it when the plugin, or the worker, is new."""
        self._place = f"Dask worker {worker.address} on {socket.gethostname()}"
        self._threads = threading.local()
        self._archive = Path(worker.local_directory) / f"{CODE_MARK}{hashlib.sha256(self._code).hexdigest()[:16]}.zip"
        self._problem = self._compare_versions() or self._install_code()

    def run(self, tasks: bytes) -> Chunk | str:
        """Makes the samples of these tasks, a pickled list of `SampleTask`.

        Returns:
            The samples; or why this worker can't make them, and the remedy. (No exception: its class might be missing.)
        """
        if self._problem:
            return self._problem
        errors = importlib.import_module("common.errors")
        sample_worker = importlib.import_module("producing.sample_worker")
        if not str(sample_worker.__file__).startswith(str(self._archive)):
            return (
                f"{self._place} has got another version of the project's code from another producer: let producers of "
                "one version share Dask workers, or start workers for each"
            )
        try:
            if not hasattr(self._threads, "worker"):
                self._threads.worker = sample_worker.SampleWorker(pickle.loads(self._recipe))
            chunk: Chunk = self._threads.worker.make(pickle.loads(tasks))
        except errors.UserError as error:
            return f"{self._place}: {error}"
        return chunk

    def _compare_versions(self) -> str:
        """What differs from the producer's packages; "" if nothing does."""
        here = versions(name for name in self._versions if name != "python")
        differing = [
            f"{name} {here[name]} (the producer: {v})" for name, v in self._versions.items() if here[name] != v
        ]
        if not differing:
            return ""
        return (
            f"{self._place} has {', '.join(differing)}: it could make other samples. Start it with the producer's "
            "Python and packages: pip install -r requirements-cluster.txt"
        )

    def _install_code(self) -> str:
        """Makes the project's modules importable, in place of those of an earlier version. Returns what hinders it."""
        shipped = {*ROOMS, *MODULES}
        loaded = {
            name: str(getattr(module, "__file__", None))
            for name, module in list(sys.modules.items())
            if name.partition(".")[0] in shipped
        }
        if all(path.startswith(str(self._archive)) for path in loaded.values()) and str(self._archive) in sys.path:
            return ""
        for name, path in loaded.items():
            if CODE_MARK not in path:
                return f"{self._place} has loaded another module of the name {name} ({path}): start a worker of its own"
        for name in loaded:
            del sys.modules[name]
        self._archive.write_bytes(self._code)
        sys.path[:] = [str(self._archive), *(path for path in sys.path if CODE_MARK not in path)]
        importlib.invalidate_caches()
        return ""


def task_function(name: str) -> Callable[[bytes], Any]:
    """The function of a Dask task: has the plugin `name` of the worker that it comes to make samples.

    It returns None where there is no such plugin: the scheduler was started again, and knows nothing of the producer.
    """

    def make_samples(tasks: bytes) -> Any:  # local, so that Dask sends it by value
        plugin = get_worker().plugins.get(name)
        return plugin.run(tasks) if plugin else None  # type: ignore[attr-defined]

    return make_samples


def pack(tasks: Sequence[SampleTask]) -> bytes:
    """The argument of a Dask task: bytes, so that the scheduler need not understand it."""
    return pickle.dumps(list(tasks))


cloudpickle.register_pickle_by_value(sys.modules[__name__])
