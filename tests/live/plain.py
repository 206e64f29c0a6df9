"""The proxy on its plain path: as `llmproxy run`, with every short cut off that is chosen by its conditions.

Another reactor than epoll has Twisted's own turn (wire/polling.py), each write goes through the transport's own buffer
(wire/direct.py), and every head is parsed (wire/repeat.py). Whatever the suite says of the proxy holds here too.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from llmproxy import __main__ as program
from llmproxy.wire import channel, client
from llmproxy.wire.direct import Writer
from llmproxy.wire.server import Site


def _plain_writer(transport: Any) -> Writer:
    return Writer(transport)


def main() -> None:
    """Switch the short cuts off, and go on as the program."""
    for module in (channel, client):
        vars(module)["writer_for"] = _plain_writer
    Site.repeats = False
    from twisted.internet import pollreactor

    pollreactor.install()
    program.main()


if __name__ == "__main__":
    sys.argv[0] = os.path.join(os.path.dirname(sys.executable), "llmproxy")
    main()
