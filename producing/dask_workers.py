"""Workers of a Dask cluster: sends them tasks, brings back chunks, and finds the scheduler again when it was away.

Dask itself gives the tasks of a worker that died to another. Added here: the workers are counted again and again, since
they come and go; a scheduler that is started again gets all that was under way once more; failures say what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import dask
import distributed
from distributed import Client, KilledWorker

from common.errors import UserError
from common.process_executor import WorkerError
from producing.dask_plugin import SamplePlugin, pack, task_function
from producing.sample_worker import Chunk, SampleTask, WorkerRecipe

logger = logging.getLogger(__name__)

CONNECT_S = 10.0
"""How long a scheduler may take to answer, in seconds."""
RECONNECT_S = 600.0
"""How long a scheduler that went away is waited for, in seconds."""
RETRY_S = 2.0
"""Pause between two attempts to reach it."""
LOOK_S = 2.0
"""How often the workers are counted, in seconds."""
REMIND_S = 60.0
"""How often a missing scheduler, or missing workers, are told of."""
GOODBYE_S = 5.0
"""How long the end of a run may wait for the scheduler, in seconds."""


class SchedulerError(UserError):
    """The Dask scheduler can't be used."""


@dataclass(eq=False)
class _Task:
    tasks: bytes
    chunk: Future[Chunk]


class DaskWorkers:
    """All workers of a Dask cluster."""

    def __init__(self, address: str, name: str, recipe: WorkerRecipe) -> None:
        """
        Args:
            address: the scheduler's.
            name: of this producer. It takes the place of what an earlier one of this name has left with the workers.
            recipe: the workers' recipe.

        Raises:
            SchedulerError: no scheduler answers at `address`.
        """
        self._address, self._name = address, name
        self._plugin, self._function = SamplePlugin(recipe), task_function(name)
        self._slots = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._under_way: set[_Task] = set()
        self._client: Client | None = self._connect()
        """None while no scheduler answers."""

    @property
    def slots(self) -> int:
        """Threads of all workers, as the scheduler last knew them."""
        return self._slots

    def submit(self, tasks: Sequence[SampleTask]) -> Future[Chunk]:
        """Has a worker make these samples.

        The future gets a `WorkerError` when a worker can't do it or workers keep dying over it, and a `SchedulerError`
        when the scheduler stays away.
        """
        task = _Task(pack(tasks), Future())
        with self._lock:
            self._under_way.add(task)
            if self._client:
                self._send(self._client, task)
        return task.chunk

    def close(self) -> None:
        """Takes back what is under way, and leaves nothing with the workers."""
        self._closing.set()
        with self._lock:
            client, self._client = self._client, None
            self._under_way.clear()
        if client:
            with contextlib.suppress(TimeoutError, OSError):  # a scheduler that does not answer forgets us by itself
                client.sync(client.scheduler.unregister_worker_plugin, name=self._name, callback_timeout=GOODBYE_S)
            client.close(timeout=GOODBYE_S)  # the scheduler drops the tasks that nobody waits for any more

    def _connect(self) -> Client:
        client = _connect(self._address)
        try:
            versions: Any = client.get_versions()
            check_python(versions)
            client.register_plugin(self._plugin, name=self._name)
            self._slots = sum(client.nthreads().values())
        except SchedulerError:
            client.close(timeout=GOODBYE_S)
            raise
        except OSError as error:
            client.close(timeout=GOODBYE_S)
            raise _scheduler_error(self._address, error) from error
        logger.info("Dask scheduler %s: %d worker threads", self._address, self._slots)
        _start(client, self._watch(client))
        return client

    def _send(self, client: Client, task: _Task) -> None:
        future = client.submit(self._function, task.tasks, pure=False)

        def cancel_if_cancelled(chunk: Future[Chunk]) -> None:
            if chunk.cancelled():
                self._under_way.discard(task)
                future.cancel()

        task.chunk.add_done_callback(cancel_if_cancelled)
        _start(client, self._deliver(client, future, task))

    async def _deliver(self, client: Client, future: distributed.Future, task: _Task) -> None:
        """Waits for a task's result and hands it over."""
        try:
            error = await future.exception(asynchronous=True)
            answers = await client.gather([future], errors="skip", asynchronous=True) if not error else []
        except OSError:
            answers, error = [], None
        with self._lock:
            if task not in self._under_way or client is not self._client:  # cancelled, or sent again by another client
                return
            if not (answers or error) and client.status == "running":  # the scheduler was told to forget everything
                self._send(client, task)
                return
            if not error and answers in ([], [None]):  # the scheduler has gone, or is another one that does not know us
                self._lose(client)
                return
            self._under_way.discard(task)
        if not task.chunk.set_running_or_notify_cancel():
            return
        if error:
            task.chunk.set_exception(_translate(error))
        elif isinstance(answers[0], str):
            task.chunk.set_exception(WorkerError(answers[0]))
        else:
            task.chunk.set_result(answers[0])

    async def _watch(self, client: Client) -> None:
        """Counts the workers now and then, and sees when the scheduler goes away."""
        reminded_at = float("-inf")
        while client.status == "running":
            with contextlib.suppress(OSError):
                slots = sum((await client.nthreads(asynchronous=True)).values())
                if slots != self._slots:
                    logger.info("Dask scheduler %s: %d worker threads", self._address, slots)
                self._slots = slots
            if not self._slots and time.monotonic() - reminded_at > REMIND_S:
                reminded_at = time.monotonic()
                logger.warning(
                    "waiting: the Dask scheduler %s has no workers; start some on each machine: "
                    "dask worker %s --nworkers CORES --nthreads 1", self._address, self._address,
                )  # fmt: skip
            await asyncio.sleep(LOOK_S)
        with self._lock:
            if client is self._client:
                self._lose(client)

    def _lose(self, client: Client) -> None:
        self._client = None
        threading.Thread(target=self._reconnect, args=(client,), daemon=True).start()

    def _reconnect(self, lost: Client) -> None:
        """Waits for the scheduler to be started again, and sends everything once more."""
        logger.warning("the Dask scheduler %s has gone: waiting for it, %g s at most", self._address, RECONNECT_S)
        lost.close(timeout=GOODBYE_S)
        deadline = time.monotonic() + RECONNECT_S
        while not self._closing.is_set():
            try:
                client = self._connect()
            except SchedulerError as error:
                if time.monotonic() > deadline:
                    self._give_up(error)
                    return
                self._closing.wait(RETRY_S)
            else:
                with self._lock:
                    if not self._closing.is_set():
                        self._client = client
                        for task in self._under_way:
                            self._send(client, task)
                        return
                client.close(timeout=GOODBYE_S)

    def _give_up(self, error: SchedulerError) -> None:
        with self._lock:
            tasks, self._under_way = self._under_way, set()
        for task in tasks:
            if task.chunk.set_running_or_notify_cancel():
                task.chunk.set_exception(error)


def check_scheduler(address: str) -> None:
    """Sees whether a scheduler answers.

    Raises:
        SchedulerError: none does.
    """
    _connect(address).close(timeout=GOODBYE_S)


def _connect(address: str) -> Client:
    # By themselves Dask's clients have the scheduler pass all results on: here that would be the whole stream.
    direct = dask.config.get("distributed.client.direct-to-workers") is not False
    try:
        return Client(
            address, timeout=CONNECT_S, name="whisper-producer", set_as_default=False, direct_to_workers=direct
        )
    except (OSError, TypeError, ValueError) as error:  # TypeError: tls:// without certificates
        raise _scheduler_error(address, error) from error


def check_python(versions: dict[str, Any]) -> None:
    """Refuses a cluster with another Python than this one: what it is sent could not be loaded there.

    Args:
        versions: as `distributed.Client.get_versions` tells them.

    Raises:
        SchedulerError: the scheduler or a worker has another one.
    """
    here = platform.python_version_tuple()[:2]
    for place, facts in {"the scheduler": versions["scheduler"], **versions["workers"]}.items():
        there = facts["host"]["python"].split(".")
        if tuple(there[:2]) != here:
            raise SchedulerError(
                f"{place} of the Dask cluster has Python {'.'.join(there[:3])}, the producer "
                f"{platform.python_version()}: start the producer, the scheduler and the workers with the same one"
            )


def _scheduler_error(address: str, error: Exception) -> SchedulerError:
    return SchedulerError(
        f"no Dask scheduler answers at data.executor {address} ({error}): start one (dask scheduler --port PORT), or "
        "correct --data.executor, or leave that out to use the cores of this machine"
    )


def _start(client: Client, coroutine: Coroutine[Any, Any, None]) -> None:
    """Has the client's own thread run a coroutine."""
    asyncio.run_coroutine_threadsafe(coroutine, client.loop.asyncio_loop)  # type: ignore[union-attr]


def _translate(error: BaseException) -> UserError:
    """What the user is told of a task that failed."""
    if isinstance(error, KilledWorker):
        return WorkerError(
            f"{error.allowed_failures + 1} Dask workers in a row died over the same task, the last of them "
            f"{error.last_worker.address}: out of memory? Its log tells; start workers with a larger --memory-limit, "
            "or fewer of them on a machine"
        )
    logger.error("a task failed on a Dask worker", exc_info=error)
    return WorkerError(
        f"a Dask worker can't make samples ({type(error).__name__}: {error}): start workers with the producer's Python "
        "and packages (pip install -r requirements-cluster.txt), and the scheduler with the same version of dask"
    )
