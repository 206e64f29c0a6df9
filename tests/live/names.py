"""Host names for a proxy under test: what the system's resolver says to it, and how long that takes.

The proxy asks the resolver through Python's ``socket.getaddrinfo``. A ``sitecustomize`` module, which Python imports
before anything of the proxy's, puts a list of a test's own in its place; the rest is the proxy as it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

_MODULE = """
import socket, time

ADDRESSES = {addresses!r}
DELAYS_S = {delays_s!r}
ask_the_system = socket.getaddrinfo

def getaddrinfo(host, port, family=0, type=0, proto=0, flags=0):
    time.sleep(DELAYS_S.get(host, 0))
    if not host.endswith(".test"):
        return ask_the_system(host, port, family, type, proto, flags)
    if host not in ADDRESSES:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)) if ":" in address
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
        for address in ADDRESSES[host]
    ]

socket.getaddrinfo = getaddrinfo
"""


def python_path(
    directory: Path, addresses: Mapping[str, Sequence[str]], delays_s: Mapping[str, float] | None = None
) -> str:
    """A PYTHONPATH with which every name under ``.test`` has these addresses, in this order, or none.

    :param delays_s: how long the resolver takes for a name.
    """
    text = _MODULE.format(addresses=dict(addresses), delays_s=dict(delays_s or {}))
    (directory / "sitecustomize.py").write_text(text)
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))
