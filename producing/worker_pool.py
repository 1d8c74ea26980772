"""The worker pool: turns positions of the plan into encoded samples, on many cores, handed over in order.

The workers are processes of this machine, or of a Dask cluster. One that dies, even by kill -9 or for want of memory,
takes nothing with it: another makes the same positions again, to the same bytes.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import ModuleType, TracebackType
from typing import Protocol

from common.process_executor import ProcessExecutor, WorkerError
from config import Config
from producing.recipe import MAX_RECORDINGS, StreamRecipe
from producing.sample_worker import Chunk, SampleTask, SampleWorker, WorkerRecipe, make_samples, start_worker

HEARTBEAT_S = 1.0
"""How often a caller that waits for a chunk is called back, in seconds."""


class Workers(Protocol):
    """What makes samples: processes of this machine, or of a cluster."""

    @property
    def slots(self) -> int:
        """How many of them there are at the moment."""

    def submit(self, tasks: Sequence[SampleTask]) -> Future[Chunk]:
        """Has one of them make these samples."""

    def close(self) -> None:
        """Cancels the tasks under way and ends the processes that were started for them."""


class WorkerPool:
    """Makes chunks ahead, on many cores, and hands them over in the order of their positions."""

    def __init__(self, recipe: StreamRecipe, processes: int) -> None:
        """
        Args:
            recipe: makes the stream; its `config.data.executor` says where the workers are.
            processes: how many, if they are on this machine.

        Raises:
            UserError: the Dask scheduler can't be used.
        """
        self._recipe = recipe
        self._pending: deque[_ChunkUnderWay] = deque()
        self._workers = _find_workers(recipe, processes)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.close()

    def chunk_at(self, position: int, heartbeat: Callable[[], None]) -> Chunk:
        """The chunk that begins at `position`.

        Asking for consecutive positions is fast; any other one drops what was made ahead.

        Args:
            position: its first position, below the plan's length.
            heartbeat: called every second while waiting.

        Raises:
            UserError: the workers keep dying, can't decode anything, failed on a sample, or lack something; the message
                says which.
        """
        if self._pending and self._pending[0].start != position:
            for chunk in self._pending:
                chunk.cancel()
            self._pending.clear()
        while True:
            self._submit_from(position)
            for chunk in self._pending:
                chunk.replace_failures()
            try:
                finished = self._pending[0].result(timeout_s=HEARTBEAT_S)
            except TimeoutError:
                heartbeat()
            else:
                self._pending.popleft()
                return finished

    def _submit_from(self, position: int) -> None:
        """Keeps two chunks per worker under way, the first of them at `position`."""
        size, end = self._recipe.config.data.chunk_size, len(self._recipe.plan)
        start = self._pending[-1].start + size if self._pending else position
        while len(self._pending) < 2 * max(1, self._workers.slots) and start < end:
            self._pending.append(_ChunkUnderWay(self._recipe, self._workers, start, min(start + size, end)))
            start += size


class SampleMaker:
    """Makes chunks in this process, without any workers: for a look at the stream, for tests and benchmarks."""

    def __init__(self, recipe: StreamRecipe) -> None:
        self._recipe, self._workers = recipe, _ThisProcess(recipe.for_workers())

    def make_chunk(self, start: int, stop: int) -> Chunk:
        """The samples at positions `start` to `stop` - 1.

        Raises:
            WorkerError: too many recordings in a row can't be decoded.
        """
        return _ChunkUnderWay(self._recipe, self._workers, start, stop).result(timeout_s=0)


class _ChunkUnderWay:
    """A chunk that is being made."""

    def __init__(self, recipe: StreamRecipe, workers: Workers, start: int, stop: int) -> None:
        self.start = start
        self._recipe, self._workers = recipe, workers
        self._made = workers.submit(recipe.tasks(start, stop))
        self._replacing: Future[Chunk] | None = None
        self._looked = False
        self._failed: list[int] = []
        """Places in the chunk whose recordings can't be decoded."""

    def replace_failures(self) -> None:
        """Has samples whose recordings can't be decoded made from others, as soon as this is known."""
        if self._looked or not self._made.done() or self._made.exception():
            return
        self._looked = True
        made = self._made.result()
        self._failed = [index for index, payload in enumerate(made.payloads) if not payload]
        if self._failed:
            tasks = [self._recipe.replacing(self.start + index) for index in self._failed]
            self._replacing = self._workers.submit(tasks)

    def result(self, timeout_s: float) -> Chunk:
        """The chunk.

        Raises:
            TimeoutError: it is not ready yet.
            WorkerError: too many recordings in a row can't be decoded.
        """
        chunk = self._made.result(timeout_s)
        self.replace_failures()
        if not self._replacing:
            return chunk
        replaced = self._replacing.result(timeout_s)
        rejected = chunk.rejected + replaced.rejected
        if not all(replaced.payloads):
            raise WorkerError(
                f"{MAX_RECORDINGS} recordings in a row can't be decoded: is the disk still mounted? "
                f"Last: {rejected[-1]}"
            )
        payloads = list(chunk.payloads)
        for index, payload in zip(self._failed, replaced.payloads, strict=True):
            payloads[index] = payload
        augmentations, corpora = chunk.augmentations + replaced.augmentations, chunk.corpora + replaced.corpora
        notes = chunk.notes + replaced.notes
        return Chunk(self.start, payloads, rejected, augmentations, corpora, notes, chunk.audio_s + replaced.audio_s)

    def cancel(self) -> None:
        """Cancels the chunk, as far as no worker has begun with it."""
        self._made.cancel()
        if self._replacing:
            self._replacing.cancel()


def worker_count(config: Config) -> int:
    """Worker processes of this machine: as configured, or one per core that this process may use."""
    if config.data.num_workers:
        return config.data.num_workers
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS lacks it


def check_executor(config: Config) -> None:
    """Refuses a `data.executor` that can't be used, before anything that takes long.

    Raises:
        UserError: no scheduler answers there, or Dask is not installed here.
    """
    if config.data.executor:
        _import_dask_workers(config).check_scheduler(config.data.executor)


def _find_workers(recipe: StreamRecipe, processes: int) -> Workers:
    config = recipe.config
    if not config.data.executor:
        return _LocalProcesses(recipe.for_workers(), processes)
    # One producer feeds a queue: a later one replaces what an earlier one has left with the workers.
    name = f"whisper producer of {socket.gethostname()} for {config.redis.namespace} at {config.redis.address}"
    workers: Workers = _import_dask_workers(config).DaskWorkers(config.data.executor, name, recipe.for_workers())
    return workers


def _import_dask_workers(config: Config) -> ModuleType:
    """Imports Dask only when it is used: it is not part of the base installation, nor of a local worker process."""
    try:
        from producing import dask_workers
    except ModuleNotFoundError as error:
        raise WorkerError(
            f"data.executor is {config.data.executor!r} but the package {error.name} is not installed: "
            "pip install -r requirements-cluster.txt"
        ) from error
    return dask_workers


class _LocalProcesses:
    """Workers on this machine."""

    def __init__(self, recipe: WorkerRecipe, processes: int) -> None:
        self.slots = processes
        self._executor = ProcessExecutor(processes, start_worker, (recipe,))

    def submit(self, tasks: Sequence[SampleTask]) -> Future[Chunk]:
        return self._executor.submit(make_samples, tasks)

    def close(self) -> None:
        self._executor.shutdown(cancel_futures=True)


class _ThisProcess:
    """No workers at all."""

    slots = 1

    def __init__(self, recipe: WorkerRecipe) -> None:
        self._worker = SampleWorker(recipe)

    def submit(self, tasks: Sequence[SampleTask]) -> Future[Chunk]:
        future: Future[Chunk] = Future()
        future.set_result(self._worker.make(tasks))
        return future

    def close(self) -> None:
        pass
