"""Runs a command with a simulator and a proxy in front of it: `stack.py COMMAND...`.

The command finds them in its environment, as `PROXY_URL` and `SIMULATOR_URL`. The rule: both are there before it
starts and gone when it ends, on ports of their own, so that several stacks can run side by side.

It runs under the Python that llmproxy is installed in; the command is free to be of another.
"""

import os
import socket
import subprocess
import sys
from typing import Final

from programs import LOOPBACK, Failed, Program, free_port, running, stop_on_sigterm

CONFIG: Final = "tests/sdk/proxy.yml"


def main(command: list[str]) -> int:
    """The exit code of the command; 1 when the stack itself failed."""
    stop_on_sigterm()
    # A port that is bound and not listened on refuses every connection, and nobody else can take it.
    with socket.socket() as refusing:
        refusing.bind((LOOPBACK, 0))
        urls = {
            "SIMULATOR_URL": f"http://{LOOPBACK}:{free_port()}",
            "PROXY_URL": f"http://{LOOPBACK}:{free_port()}",
            "REFUSED_URL": f"http://{LOOPBACK}:{refusing.getsockname()[1]}",
        }
        simulator_port, proxy_port, _ = (int(url.rpartition(":")[2]) for url in urls.values())
        simulator = Program("simulator", "simulate", f"--port={simulator_port}", port=simulator_port, environ={})
        with running(simulator):
            simulator.wait_until_ready()
            endpoint = f"--port=tcp:{proxy_port}:interface={LOOPBACK}"
            environ = urls | {"LOG_FORMAT": "text", "LOG_LEVEL": "error"}
            proxy = Program("proxy", "run", endpoint, f"--config={CONFIG}", port=proxy_port, environ=environ)
            with running(proxy):
                proxy.wait_until_ready("/health")
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
