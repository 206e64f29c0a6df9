"""`make demo`, from its refusals to its end."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from twisted.trial.unittest import SynchronousTestCase

from tests.scripts.terminal import LIMIT_S, ROOT, script


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


class RefusalTests(SynchronousTestCase):
    """What stands in the demo's way is said in one line."""

    def test_a_taken_port_is_named(self) -> None:
        """With a port in use the demo ends at once, names the port and a way out."""
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            for given in ({"PORT": str(port)}, {"PORT": str(free_port()), "SIMULATOR_PORT": str(port)}):
                told = script("demo.py", **given)
                self.assertEqual((told.status, told.out), (1, ""))
                self.assertEqual(
                    told.err,
                    f"demo: Port {port} is taken by another program;"
                    f" make demo {list(given)[-1]}=N takes another one.\n",
                )

    def test_a_port_that_is_none_is_named(self) -> None:
        """PORT has to be a port number."""
        told = script("demo.py", PORT="ninethousand")
        self.assertEqual(told.status, 1)
        self.assertEqual(told.err, "demo: PORT is 'ninethousand'; the demo needs a number from 1 to 65535.\n")


@pytest.mark.slow
class ShowTests(SynchronousTestCase):
    """The demo itself."""

    def test_shows_an_answer_stays_and_stops_with_ctrl_c(self) -> None:
        """Lines to paste, an answer that came in pieces, the log; after Ctrl-C both ports are free again."""
        ports = {"PORT": str(free_port()), "SIMULATOR_PORT": str(free_port())}
        demo = subprocess.Popen(
            (sys.executable, "-u", "scripts/demo.py"),
            cwd=ROOT,
            env=os.environ | ports,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.addCleanup(demo.wait, LIMIT_S)
        self.addCleanup(demo.terminate)
        assert demo.stdout is not None
        shown = ""
        for line in demo.stdout:
            shown += line
            if "POST openai gpt-4o" in line:  # the access event of the answer
                break
        demo.send_signal(signal.SIGINT)
        rest, complaint = demo.communicate(timeout=LIMIT_S)
        self.assertEqual((demo.returncode, complaint), (0, ""))
        self.assertTrue(rest.endswith("\nStopped.\n"))
        self.assertIn(f'base_url="http://127.0.0.1:{ports["PORT"]}/openai/v1"', shown)
        self.assertRegex(shown, r"\n  \S.*\n\n\(\d+ events; the first after ")
        for port in ports.values():
            with self.assertRaises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", int(port))).close()
