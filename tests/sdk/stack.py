"""Runs a command with a simulator and a proxy in front of it: `stack.py COMMAND...`.

The command finds them in its environment, as `PROXY_URL` and `SIMULATOR_URL`. The rule: both are there before it
starts and gone when it ends, on ports of their own, so that several stacks can run side by side.

It runs under the Python that llmproxy is installed in; the command is free to be of another.
"""

import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from typing import Final

from programs import LOOPBACK, Failed, Program, running, stop_on_sigterm

CONFIG: Final = "tests/sdk/proxy.yml"


def held_port(until: ExitStack) -> int:
    """A port that is nobody else's until the end.

    It is bound here without being listened on, so that connections to it are refused and the kernel gives it to
    nobody, neither to another stack nor to a client's connection. A program of ours that is told of it may still
    listen on it, because both sides allow the address to be reused.
    """
    holder = until.enter_context(socket.socket())
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind((LOOPBACK, 0))
    port: int = holder.getsockname()[1]
    return port


def main(command: list[str]) -> int:
    """The exit code of the command. Raises Failed when the stack does not start or finds a fault in itself."""
    stop_on_sigterm()
    with ExitStack() as until:
        names = ("SIMULATOR_URL", "PROXY_URL", "REFUSED_URL")
        ports = {name: held_port(until) for name in names}
        urls = {name: f"http://{LOOPBACK}:{port}" for name, port in ports.items()}
        port = ports["SIMULATOR_URL"]
        simulator = Program("simulator", "simulate", f"--port={port}", port=port, environ={})
        until.enter_context(running(simulator)).wait_until_ready()
        port = ports["PROXY_URL"]
        endpoint = f"--port=tcp:{port}:interface={LOOPBACK}"
        environ = urls | {"LOG_FORMAT": "text", "LOG_LEVEL": "error"}
        proxy = Program("proxy", "run", endpoint, f"--config={CONFIG}", port=port, environ=environ)
        until.enter_context(running(proxy)).wait_until_ready("/health")
        # The path to this script's own imports is of no use to the command.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        status = subprocess.call(command, env=inherited | urls)
        simulator.check_alive()
        proxy.check_alive()
        if complaints := proxy.new_output():
            raise Failed(f"The proxy found a fault in itself. It said:\n{complaints}")
        return status


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Failed as failure:
        sys.exit(f"{failure}")
    except KeyboardInterrupt:
        sys.exit(130)
