"""The proxy put together, and put together again: what changed changes, what did not is kept."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.assembly import Assembly, StartError
from llmproxy.config.model import Config, Identity, Ledger, Server, Upstream
from llmproxy.observe.access import AccessRecord
from llmproxy.providers import Provider, of_kind
from tests.web.proxy_in_memory import get, head_and_body, post
from tests.wire.certificates import Authority
from tests.wire.far_end import FarEnd

SECRET = Identity(secret="s" * 32)


def local(name: str, port: int, scheme: str = "http") -> Provider:
    """A provider on this port of an address that nobody has."""
    return of_kind("openai-compatible", name=name, base_url=f"{scheme}://192.0.2.9:{port}")


def config(*providers: Provider, **sections: Any) -> Config:
    """A configuration with these providers."""
    return Config(
        **{
            "providers": {each.name: each for each in providers},
            "upstreams": {},
            "identity": SECRET,
            "ledger": Ledger(backend="off"),
            **sections,
        }
    )


class Replacing(SynchronousTestCase):
    """Another configuration while the proxy runs."""

    def setUp(self) -> None:
        """A reactor in memory, and two providers."""
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        self.reactor = MemoryReactorClock()
        self.records: list[AccessRecord] = []
        self.one, self.two = local("one", 1), local("two", 2)
        self.assembly = self.assemble(config(self.one, self.two))

    def assemble(self, config: Config, **environ: str) -> Assembly:
        """Put a proxy together."""
        return Assembly(config, environ, self.reactor, self.records.append, lambda: 1_795_521_600.0)

    def ask(self, path: str) -> FarEnd:
        """A new caller that asks."""
        caller = FarEnd(self.reactor, self.assembly.site.buildProtocol(None)).connect()
        caller.says(get(path))
        return caller

    def dialled(self) -> list[int]:
        """The ports to which connections were opened."""
        return [client[1] for client in self.reactor.tcpClients]

    def test_kept(self) -> None:
        """An origin of which nothing changed is the same one, with its connections; the other is a new one."""
        before = self.assembly.origins
        self.assembly.replace(config(self.one, local("two", 3)))
        after = self.assembly.origins
        self.assertIs(after[0], before[0])
        self.assertIsNot(after[1], before[1])
        self.ask("/two/v1/models")
        self.assertEqual(self.dialled(), [3])
        self.assembly.close()

    def test_everything_that_decides(self) -> None:
        """Address, limits of the provider, and nothing else make another origin."""
        for changed, is_new in (
            (config(self.one), False),
            (config(self.one, server=Server(max_headers=20)), False),
            (config(self.one, upstreams={"one": Upstream()}), False),
            (config(self.one, upstreams={"one": Upstream(idle_timeout_s=1)}), True),
            (config(self.one, upstream=Upstream(pool_size=1)), True),
            (config(local("one", 9)), True),
        ):
            self.assembly = self.assemble(config(self.one))
            before = self.assembly.origins[0]
            self.assembly.replace(changed)
            self.assertEqual(self.assembly.origins[0] is not before, is_new, changed)

    def test_added_and_removed(self) -> None:
        """Providers come and go with the configuration."""
        self.assembly.replace(config(self.two, local("three", 3)))
        self.assertIn(b"404", head_and_body(self.ask("/one/v1/models").heard())[0][:16])
        self.ask("/three/v1/models")
        self.assertEqual(self.dialled(), [3])
        self.assembly.close()

    def test_in_flight(self) -> None:
        """What waits for a removed provider goes on; it is ended with the proxy, and not forgotten."""
        caller = self.ask("/one/v1/models")
        self.assembly.replace(config(self.two))
        self.assertEqual(caller.heard(), b"")
        self.assertFalse(caller.closed)
        self.assertEqual(len(self.assembly.origins), 2)
        self.assembly.replace(config(self.two, server=Server(max_headers=20)))
        self.assertEqual(len(self.assembly.origins), 2)
        self.assembly.close()
        self.reactor.advance(0)
        self.assertEqual([str(each.end_reason) for each in self.records], ["drain"])
        self.assertEqual([each.open_connections for each in self.assembly.origins], [0, 0])

    def test_not_yet_sent(self) -> None:
        """A request that had sent nothing to its provider when that was removed goes there all the same, and its origin
        is not forgotten."""
        caller = FarEnd(self.reactor, self.assembly.site.buildProtocol(None)).connect()
        caller.says(post("/one/v1/chat/completions", b'{"model": "m"}')[:-3])
        self.assertEqual(self.dialled(), [])
        self.assembly.replace(config(self.two))
        caller.says(b'm"}')
        self.assertEqual(self.dialled(), [1])
        self.assertEqual(sorted(each.open_connections for each in self.assembly.origins), [0, 1])
        self.assembly.close()
        self.reactor.advance(0)
        self.assertEqual([each.open_connections for each in self.assembly.origins], [0, 0])

    def test_trust(self) -> None:
        """A CA file that is the same costs nothing; one that was written anew is read again, and only who trusts it
        gets new connections."""
        ca_file = Authority.make(str(self.folder)).path
        private = Upstream(ca_file=ca_file)
        far, near = local("far", 1, "https"), local("near", 2, "https")
        with_ca = config(far, near, upstreams={"far": private})
        self.assembly = self.assemble(with_ca)
        before = self.assembly.origins
        self.assembly.replace(replace(with_ca, server=Server(max_headers=20)))
        self.assertEqual(self.assembly.origins, before)
        os.utime(ca_file, (1, 1))
        self.assembly.replace(with_ca)
        self.assertIsNot(self.assembly.origins[0], before[0])
        self.assertIs(self.assembly.origins[1], before[1])

    def test_what_is_missing(self) -> None:
        """A configuration that cannot be put together changes nothing at all."""
        before, context = self.assembly.origins, self.assembly.site.context
        bad = config(local("two", 3), local("far", 1, "https"), upstream=Upstream(ca_file="/nowhere/ca.pem"))
        error = self.assertRaises(StartError, self.assembly.replace, bad)
        self.assertIn("/nowhere/ca.pem", str(error))
        self.assertEqual(self.assembly.origins, before)
        self.assertIs(self.assembly.site.context, context)
        self.ask("/two/v1/models")
        self.assertEqual(self.dialled(), [2])
        self.assembly.close()

    def test_names_of_keys(self) -> None:
        """A key has the same name in the log before and after, also when the secret in the file is another."""
        before = self.assembly.site.context.credential_ids.credential_id(b"sk-key")
        self.assembly.replace(config(self.one, identity=Identity(secret="t" * 32)))
        self.assertEqual(self.assembly.site.context.credential_ids.credential_id(b"sk-key"), before)

    def test_ids_go_on(self) -> None:
        """No request id is given twice."""
        one = self.assembly.site.context.next_request_id()
        self.assembly.replace(config(self.one))
        two = self.assembly.site.context.next_request_id()
        self.assertEqual(one[:-8], two[:-8])
        self.assertEqual(int(two[-8:], 16), int(one[-8:], 16) + 1)
