"""Starts programs of ours in the background, waits until they answer, stops them: for the scripts beside it.

The rule: whatever happens to the script, the programs that it started are gone when it ends.
Standard library only.
"""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
LOOPBACK: Final = "127.0.0.1"

START_LIMIT_S: Final = 15.0
STOP_LIMIT_S: Final = 10.0
_LOOK_AGAIN_S: Final = 0.05


class Failed(Exception):
    """A sentence for the person who ran the script: what did not work. Scripts print it and exit 1."""


def free_port() -> int:
    """A port of the loopback interface that is free at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def is_taken(port: int) -> bool:
    """Whether something listens on ``port`` already, on any address of this machine."""
    with socket.socket() as probe:
        # As every server does: a connection of an earlier run that is still closing does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return True
    return False


class Program:
    """``python -m llmproxy ...`` in the background. What it prints is kept, and shown when it fails."""

    def __init__(self, name: str, *arguments: str, port: int, environ: Mapping[str, str]) -> None:
        self.name = name
        self.port = port
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        self._shown_bytes = 0
        self._process = subprocess.Popen(
            (sys.executable, "-m", "llmproxy", *arguments),
            cwd=ROOT,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            # Ctrl-C in the terminal is for the script alone; the script then stops the program, once.
            start_new_session=True,
        )

    def wait_until_ready(self, path: str | None = None) -> None:
        """Return once the program accepts connections and, given ``path``, answers it with 200.

        Raises Failed when it ends before that, or when it takes longer than START_LIMIT_S.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers(path):
            self.check_alive()
            if time.monotonic() > deadline:
                raise Failed(f"The {self.name} did not answer within {START_LIMIT_S:.0f} s.{self._said()}")
            time.sleep(_LOOK_AGAIN_S)

    def _answers(self, path: str | None) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=START_LIMIT_S)
        try:
            connection.connect()
            if path is None:
                return True
            connection.request("GET", path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except OSError:
            return False
        finally:
            connection.close()

    def check_alive(self) -> None:
        """Raise Failed, with what the program said, if it has ended."""
        status = self._process.poll()
        if status is not None:
            raise Failed(f"The {self.name} ended with status {status}.{self._said()}")

    def new_output(self) -> str:
        """What the program printed since this was last asked."""
        size_bytes = os.fstat(self._output.fileno()).st_size
        # pread: the program writes at the position that it shares with this file object.
        data = os.pread(self._output.fileno(), size_bytes - self._shown_bytes, self._shown_bytes)
        self._shown_bytes += len(data)
        return data.decode("utf-8", "replace")

    def _said(self) -> str:
        text = self.new_output().strip()
        return f" It said:\n{text}" if text else " It said nothing."

    def stop(self) -> None:
        """End the program: first politely, after STOP_LIMIT_S by force."""
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()


@contextmanager
def running(program: Program) -> Iterator[Program]:
    """The program for the length of a ``with`` block."""
    try:
        yield program
    finally:
        program.stop()


def stop_on_sigterm() -> None:
    """Make SIGTERM end the script as Ctrl-C does, so that its ``with`` blocks stop what it started."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    # A shell starts what it puts in the background with SIGINT ignored, and Python leaves that as it is.
    signal.signal(signal.SIGINT, signal.default_int_handler)
