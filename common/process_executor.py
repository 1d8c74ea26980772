"""An executor of worker processes that survives the death of any of them at any moment.

`concurrent.futures.ProcessPoolExecutor` gives all workers one pipe for their answers. A worker that is killed while it
writes leaves half an answer there, and everybody waits for the other half for ever. Here each worker has a pipe of its
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
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any, ParamSpec, TypeVar

from common.errors import UserError, one_line

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Answer = tuple[bool, Any, str]
"""Whether the task succeeded; its result, or the exception; the exception's traceback in the worker."""

MAX_DEATHS = 3
"""Workers that may die over one task before it is given up."""
EXIT_S = 5.0
"""How long an idle worker may take to end, in seconds."""
THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""Environment variables that keep the numerical libraries of a worker to one core."""


class WorkerError(UserError):
    """The workers can't go on."""


class TaskError(Exception):
    """What a task raised, where the exception itself can't be sent to another process: its type and message."""


class RemoteTracebackError(Exception):
    """Carries the traceback of an exception in the worker, as text: the `__cause__` of what a future raises."""


class ProcessExecutor(Executor):
    """Runs tasks in worker processes. A task must be repeatable: it is done again when its worker dies.

    Whatever a task, or the initializer, raises goes to the task's future; the worker lives on.
    """

    def __init__(self, workers: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()):
        """
        Args:
            workers: processes.
            initializer: called first in each of them.
            initargs: its arguments.
        """
        self._initializer, self._initargs = initializer, initargs
        self._tasks: queue.SimpleQueue[tuple[Future[Any], memoryview] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._processes: dict[int, SpawnProcess] = {}
        self._busy: set[int] = set()
        for name in THREAD_LIMITS:
            os.environ.setdefault(name, "1")
        self._threads = [threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Queues a task. The future gets what it raises, or a `WorkerError` when workers keep dying over it.

        Raises:
            Exception: as `pickle` does, for a function or arguments that can't be sent to another process.
        """
        if self._closing.is_set():
            raise RuntimeError("the executor is shut down")
        if kwargs:
            raise TypeError("tasks take positional arguments only")
        future: Future[T] = Future()
        self._tasks.put((future, ForkingPickler.dumps((fn, args))))
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
        """Runs tasks in one worker process, which is started for the first task, and again when it dies."""
        # Workers inherit this from the thread that starts them: Ctrl-C reaches the whole group, and must not end them
        # with a traceback each; the parent ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        worker: _Worker | None = None
        while (item := self._tasks.get()) is not None:
            self._busy.add(number)
            if self._closing.is_set():
                break
            future, task = item
            if future.set_running_or_notify_cancel():
                worker = self._run(number, worker, future, task)
                if self._closing.is_set():
                    break
            self._busy.discard(number)
        if worker:
            worker.end()

    def _run(self, number: int, worker: _Worker | None, future: Future[Any], task: memoryview) -> _Worker | None:
        """Has a task done and settles its future. Returns the worker for the next task; None: none lives."""
        for _ in range(MAX_DEATHS):
            try:
                worker = worker or self._start(number)
                succeeded, answer, trace = worker.ask(task)
            except (EOFError, OSError) as error:
                if self._closing.is_set():  # it was killed by `shutdown`
                    return worker
                if worker:
                    worker.close_dead()
                else:
                    logger.warning("cannot start a worker (%s): trying again", error)
                worker = None
            except Exception as error:  # noqa: BLE001  # whatever the class of a result likes, unpickled here
                if worker:
                    worker.end()
                future.set_exception(error)
                return None
            else:
                if succeeded:
                    future.set_result(answer)
                else:
                    answer.__cause__ = RemoteTracebackError(f"\n{trace}")
                    future.set_exception(answer)
                return worker
        future.set_exception(
            WorkerError(
                f"{MAX_DEATHS} workers in a row died over the same task: out of memory? Try fewer --data.num_workers; "
                "what they printed stands above"
            )
        )
        return None

    def _start(self, number: int) -> _Worker:
        # spawn: a fork would copy the parent's locks and hang in whatever library holds one
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs,), daemon=True)
        process.start()
        theirs.close()  # the worker has the only other end, so that its death breaks the pipe
        self._processes[number] = process
        if self._closing.is_set():  # `shutdown` came before this process was known to it
            process.kill()
        # Not among the process's arguments: multiprocessing writes those to a pipe whose other end it holds open, and
        # would write for ever what a worker that is dead already can't read.
        with contextlib.suppress(OSError):  # it is dead, as its first task will find
            ours.send((self._initializer, self._initargs))
        return _Worker(process, ours)


class _Worker:
    """A worker process, as its parent sees it."""

    def __init__(self, process: SpawnProcess, pipe: Connection) -> None:
        self._process, self._pipe = process, pipe

    def ask(self, task: memoryview) -> Answer:
        """Has it do a pickled task.

        The answer is read as a stream: `Connection.recv` allocates the whole of it, megabytes, for each part that
        arrives, and the holes that this leaves between the results in memory kept the process growing.

        Raises:
            EOFError: it has died.
            OSError: it has died.
            Exception: what a result raises that can't be unpickled here. Its rest is still in the pipe: end the worker.
        """
        self._pipe.send_bytes(task)
        with open(self._pipe.fileno(), "rb", closefd=False) as stream:
            try:
                answer: Answer = pickle.load(stream)
            except pickle.UnpicklingError as error:  # it died while it wrote
                raise EOFError(str(error)) from error
        return answer

    def close_dead(self) -> None:
        """Closes the pipe of a worker that has died, and says so."""
        self._pipe.close()
        self._process.join()
        logger.warning("worker %d died (exit code %s): starting another", self._process.pid, self._process.exitcode)

    def end(self) -> None:
        """Ends it: at once if it is idle."""
        self._pipe.close()  # it then ends by itself
        self._process.join(EXIT_S)
        self._process.kill()
        self._process.join()


def _work(pipe: Connection) -> None:
    """A worker's main loop: first its initializer, then tasks. It ends when the parent closes the pipe or dies."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        failure = _do(pipe.recv_bytes())[1]
        while True:
            task = pipe.recv_bytes()
            with open(pipe.fileno(), "wb", closefd=False) as stream:
                stream.write(failure or _pickled_answer(task))
    except (EOFError, OSError):  # the parent has closed the pipe, or is gone
        return


def _pickled_answer(task: bytes) -> memoryview:
    result, failure = _do(task)
    if failure:
        return failure
    try:
        return ForkingPickler.dumps((True, result, ""))
    except Exception as error:  # noqa: BLE001  # what can't be pickled raises whatever its class likes
        return _pickled_failure(error)


def _do(task: bytes) -> tuple[Any, memoryview | None]:
    """Does a pickled task. Returns its result, and None; or None, and the pickled `Answer` when it failed."""
    try:
        function, arguments = pickle.loads(task)
        return (function(*arguments) if function else None), None
    except Exception as error:  # noqa: BLE001  # all that a task raises is for the caller who waits for its result
        return None, _pickled_failure(error)


def _pickled_failure(error: Exception) -> memoryview:
    trace = "".join(traceback.format_exception(error))
    try:
        answer = ForkingPickler.dumps((False, error, trace))
        pickle.loads(answer)  # some exceptions can be pickled but not unpickled
    except Exception:  # noqa: BLE001  # as for results
        answer = ForkingPickler.dumps((False, TaskError(f"{type(error).__name__}: {one_line(error)}"), trace))
    return answer
