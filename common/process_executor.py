"""An executor of worker processes that survives the death of any of them at any moment.

`concurrent.futures.ProcessPoolExecutor` gives all workers one pipe for their answers. A worker that is killed while it
writes leaves half an answer there, for whose other half everybody waits for ever. Here each worker has a pipe of its
own, which breaks when the worker dies; a new worker then does the task again.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, ParamSpec, TypeVar

from common.errors import UserError

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

MAX_DEATHS = 3
"""Workers that may die over one task before it is given up."""
EXIT_S = 5.0
"""How long an idle worker may take to end, in seconds."""
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that keep the numerical libraries of a worker to one core."""


class WorkerError(UserError):
    """The workers can't go on."""


class ProcessExecutor(Executor):
    """Runs tasks in worker processes. A task must be repeatable: it is done again when its worker dies.

    Of what a task raises, a `UserError` is passed on; anything else ends the worker, with its traceback on stderr.
    """

    def __init__(self, workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()):
        """
        Args:
            workers: processes.
            initializer: called first in each of them.
            initargs: its arguments.
        """
        self._initializer, self._initargs = initializer, initargs
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None]
        self._tasks = queue.SimpleQueue()
        self._closing = threading.Event()
        self._processes: dict[int, SpawnProcess] = {}
        self._busy: set[int] = set()
        for name in THREAD_LIMITS:
            os.environ.setdefault(name, "1")
        self._threads = [threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a task, to be pickled. The future gets a `WorkerError` when workers keep dying over it."""
        if self._closing.is_set():
            raise RuntimeError("the executor is shut down")
        if kwargs:
            raise TypeError("tasks take positional arguments only")
        future: Future[T] = Future()
        self._tasks.put((future, fn, args))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers, those that are at work by force: it can be done again. Queued tasks are dropped."""
        self._closing.set()
        for number in list(self._busy):
            if process := self._processes.get(number):  # none yet while the first is being started
                process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self, number: int) -> None:
        """The life of one worker's place: starts a worker when there is a task, and a new one when it dies."""
        # Workers inherit this from the thread that starts them: Ctrl-C reaches the whole group, and must not end them
        # with a traceback each; the parent ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker: tuple[SpawnProcess, Connection] | None = None
        while (task := self._tasks.get()) is not None:
            self._busy.add(number)
            if self._closing.is_set():
                break
            future, function, arguments = task
            if future.set_running_or_notify_cancel():
                for _ in range(MAX_DEATHS):
                    try:
                        worker = worker or self._start(number)
                        succeeded, answer = _ask(worker[1], function, arguments)
                    except (EOFError, OSError) as error:
                        if self._closing.is_set():
                            if worker:
                                worker[0].join()
                            return
                        worker = self._bury(worker, error)
                    else:
                        future.set_result(answer) if succeeded else future.set_exception(answer)
                        break
                else:
                    future.set_exception(
                        WorkerError(
                            f"{MAX_DEATHS} workers in a row died over the same task: out of memory? Try fewer "
                            "--data.num_workers; what they printed stands above"
                        )
                    )
            self._busy.discard(number)
        if worker:
            process, pipe = worker
            pipe.close()  # the worker's sign to go
            process.join(EXIT_S)
            process.kill()
            process.join()

    @staticmethod
    def _bury(worker: tuple[SpawnProcess, Connection] | None, error: Exception) -> None:
        if worker is None:
            logger.warning("cannot start a worker (%s): trying again", error)
            return
        process, pipe = worker
        pipe.close()
        process.join()
        logger.warning("worker %d died (exit code %s): starting another", process.pid, process.exitcode)

    def _start(self, number: int) -> tuple[SpawnProcess, Connection]:
        # spawn: a fork would copy the parent's locks and hang in whatever library holds one
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # the worker has the only other end, so that its death breaks the pipe
        self._processes[number] = process
        if self._closing.is_set():  # shut down since: nobody else would end this one
            process.kill()
        # Not among the process's arguments: multiprocessing writes those to a pipe whose other end it holds open, and
        # would write for ever what a worker that is dead already can't read.
        with contextlib.suppress(OSError):  # it is dead, as its first task will find
            ours.send((self._initializer, self._initargs))
        return process, ours


def _ask(pipe: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
    """Has a worker do a task. Returns whether it succeeded, and its result or its error.

    The answer is read as a stream: `pipe.recv()` allocates the whole of it, megabytes, for each part that arrives, and
    the holes that this leaves between the results in memory kept the process growing.
    """
    pipe.send((function, arguments))
    with open(pipe.fileno(), "rb", closefd=False) as stream:
        try:
            succeeded, answer = pickle.load(stream)
        except pickle.UnpicklingError as error:  # the worker died while it wrote
            raise EOFError(str(error)) from error
    return succeeded, answer


def _work(pipe: Connection) -> None:
    """A worker's main loop: first its initializer, then tasks. It ends when the parent closes the pipe or dies."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        initializer, initargs = pipe.recv()
    except (EOFError, OSError):
        return
    if initializer:
        initializer(*initargs)
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            answer = True, function(*arguments)
        except UserError as error:
            answer = False, error
        try:
            with open(pipe.fileno(), "wb", closefd=False) as stream:
                pickle.dump(answer, stream)
        except OSError:  # the parent has gone
            return
