"""The two C programs: built on first use, and their results as dictionaries."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.machine import SetupError

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "native"
BUILD = HERE / "build"


def build() -> None:
    """Compiles what is missing or older than its source into `build/`."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    newest_shared = (SOURCES / "common.h").stat().st_mtime
    BUILD.mkdir(exist_ok=True)
    for name in ("mock", "load"):
        source, program = SOURCES / f"{name}.c", BUILD / name
        if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime, newest_shared):
            continue
        if compiler is None:
            raise SetupError("no C compiler: apt-get update && apt-get install -y gcc libc6-dev")
        subprocess.run([compiler, "-O2", "-Wall", "-Wextra", "-o", program, source], check=True)


def mock_stats(port: int) -> dict[str, int]:
    """What the mock has seen: `conns` and `reqs` so far, `open` and `streaming` now. This asking counts."""
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.sendall(b"GET /stats HTTP/1.0\r\n\r\n")
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    stats: dict[str, int] = json.loads(answer.split(b"\r\n\r\n", 1)[1])
    return stats


def run_load(**options: Any) -> dict[str, Any]:
    """Runs the load client on our own cpu to its end. Options without their dashes; None is left out."""
    command = [str(BUILD / "load")]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def length_of_answer(port: int, path: str, body: bytes) -> int:
    """Bytes in the body of the mock's own answer: what has to arrive through a proxy as well."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return len(connection.getresponse().read())
    finally:
        connection.close()
