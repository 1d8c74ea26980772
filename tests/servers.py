"""Servers and proxies for the tests, and ports for them."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import redis

from config import RedisConfig


def find_free_port() -> int:
    """A TCP port that nothing uses just now, below those that the system gives to connections by itself."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def accepts(port: int) -> bool:
    """Whether something listens on a local port."""
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Waits for a server to come up."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the server did not come up"
        time.sleep(0.01)


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Passes on what comes until either end hangs up, then hangs up both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    hang_up(source, sink)


def hang_up(*sockets: socket.socket) -> None:
    """Ends connections, whatever their state."""
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextlib.contextmanager
def broken(config: RedisConfig, fault: str) -> Iterator[None]:
    """Breaks a server of one's own: "killed" for good; "hung" or "busy" (with another client's script) in the block."""
    with redis.Redis(port=config.port) as client:
        pid = client.info("server")["process_id"]
    if fault == "busy":
        script = threading.Thread(target=_run_endless_script, args=(config,), daemon=True)
        script.start()
        wait_for(lambda: _is_busy(config))
        yield
        end_script(config)
        script.join()
        return
    os.kill(pid, signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
    yield
    if fault == "hung":
        os.kill(pid, signal.SIGCONT)


def end_script(config: RedisConfig) -> None:
    """Ends the script with which a server is busy, if there is one."""
    with redis.Redis(port=config.port) as client, contextlib.suppress(redis.ResponseError):
        client.script_kill()


def _run_endless_script(config: RedisConfig) -> None:
    with redis.Redis(port=config.port) as client, contextlib.suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def _is_busy(config: RedisConfig) -> bool:
    try:
        with redis.Redis(port=config.port) as client:
            return not client.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY ")


class LossyProxy:
    """Passes everything on, but loses the reply to a command that it is told to look for."""

    def __init__(self, target: RedisConfig) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.target = target
        self.config = dataclasses.replace(
            target, host="127.0.0.1", port=self._listener.getsockname()[1], embedded=False
        )
        self._looked_for: bytes | None = None
        self._before = False
        self.lost = 0
        """Commands whose reply was lost so far."""
        self._sockets: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def lose(self, command: str, before: bool = False) -> None:
        """Closes the connection at the next command that contains `command`: after the server has run it, or before."""
        self._looked_for, self._before = command.encode(), before

    def close(self) -> None:
        """Closes every connection."""
        hang_up(*self._sockets)

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target.port))
            self._sockets += [client, server]
            losing = threading.Event()
            for source, sink, is_request in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, is_request, losing), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_request: bool, losing: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if is_request and self._looked_for and self._looked_for in data:
                    self._looked_for = None
                    self.lost += 1
                    if self._before:
                        break
                    losing.set()
                if not is_request and losing.is_set():
                    break
                sink.sendall(data)
        hang_up(source, sink)


class FlakyProxy:
    """Passes everything on, but breaks the connection at every n-th reply: after it was sent, in it, or before."""

    def __init__(self, target: RedisConfig, every: int) -> None:
        """
        Args:
            target: the server.
            every: replies (as they come from the socket) from one fault to the next.
        """
        self._target, self._every = target, every
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.broken = 0
        """Connections broken so far."""
        self._replies = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> FlakyProxy:
        return self

    def __exit__(self, *exception: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._target.port))
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            threading.Thread(target=self._pass_replies, args=(client, server), daemon=True).start()

    def _pass_replies(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                with self._lock:
                    self._replies += 1
                    breaks = self._replies % self._every == 0
                    self.broken += breaks
                if breaks:
                    client.sendall(data[: (0, len(data) // 2, len(data))[self.broken % 3]])
                    break
                client.sendall(data)
        hang_up(client, server)


class S3Server:
    """A server of the S3 protocol with one bucket, behind a gate: shut, the server has gone; open, it is back."""

    def __init__(self) -> None:
        self._inner_port, self.port = find_free_port(), find_free_port()
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._inner_port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._sockets: list[socket.socket] = []
        wait_for(lambda: accepts(self._inner_port), timeout_s=60)
        self._client().create_bucket(Bucket="bucket")

    def put(self, key: str, content: bytes) -> str:
        """Stores an object. Returns its URL."""
        self._client().put_object(Bucket="bucket", Key=key, Body=content)
        return f"s3://bucket/{key}"

    def delete(self, key: str) -> None:
        """Deletes an object."""
        self._client().delete_object(Bucket="bucket", Key=key)

    def start(self) -> None:
        """Opens the gate."""
        if not self._sockets:
            self._sockets = [socket.create_server(("127.0.0.1", self.port))]
            threading.Thread(target=self._accept, args=(self._sockets[0],), daemon=True).start()

    def stop(self) -> None:
        """Shuts the gate: connections break, and new ones are refused."""
        hang_up(*self._sockets)
        self._sockets = []

    def close(self) -> None:
        """Ends the server."""
        self.stop()
        self._process.kill()
        self._process.wait()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                ends = [listener.accept()[0], socket.create_connection(("127.0.0.1", self._inner_port))]
            except OSError:
                return
            self._sockets += ends
            for source, sink in (ends, reversed(ends)):
                threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def _client(self):
        import boto3

        url = f"http://127.0.0.1:{self._inner_port}"
        return boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="key", aws_secret_access_key="word"
        )
