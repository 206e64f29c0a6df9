"""The providers: their paths, the dialect of their errors, and a new one by configuration."""

from __future__ import annotations

import dataclasses
from urllib.parse import urlsplit

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.errors import DIALECTS
from llmproxy.providers import CATALOG, KINDS, dialect_of, model_in_path, of_kind


class Catalog(SynchronousTestCase):
    """What is built in."""

    def test_the_four(self) -> None:
        """OpenAI, Anthropic, Gemini and Groq are there, at their public addresses."""
        self.assertEqual(
            {name: provider.base_url for name, provider in CATALOG.items()},
            {
                "openai": "https://api.openai.com",
                "anthropic": "https://api.anthropic.com",
                "gemini": "https://generativelanguage.googleapis.com",
                "groq": "https://api.groq.com",
            },
        )

    def test_well_formed(self) -> None:
        """Every provider fits what the rest of the proxy takes for granted."""
        for name, provider in CATALOG.items():
            self.assertEqual(provider.name, name)
            self.assertIn(provider.kind, KINDS)
            self.assertTrue(provider.sdk_path == f"/{name}" or provider.sdk_path.startswith(f"/{name}/"))
            self.assertFalse(provider.base_url.endswith("/"))
            self.assertEqual(urlsplit(provider.base_url).scheme, "https")
            self.assertIn(dialect_of(provider, b"/v1/x"), DIALECTS)

    def test_frozen(self) -> None:
        """A provider is data: nothing can change it while requests run."""
        self.assertRaises(dataclasses.FrozenInstanceError, setattr, CATALOG["openai"], "base_url", "http://x")

    def test_health(self) -> None:
        """The entries in /health are those of the original proxy."""
        self.assertEqual(
            CATALOG["groq"].health_report(),
            {
                "provider": "groq",
                "status": "healthy",
                "baseURL": "https://api.groq.com",
                "streaming_support": True,
                "body_parsing": True,
            },
        )
        gemini = CATALOG["gemini"].health_report()
        self.assertEqual((gemini["body_parsing"], gemini["sse_support"]), (False, True))

    def test_health_tells_the_configured_address(self) -> None:
        """With another base_url, /health shows that one."""
        provider = dataclasses.replace(CATALOG["openai"], base_url="http://127.0.0.1:9100")
        self.assertEqual(provider.health_report()["baseURL"], "http://127.0.0.1:9100")


class Targets(SynchronousTestCase):
    """What the upstream is asked for."""

    def test_paths(self) -> None:
        """Only the provider's segment is taken away, and Groq's short form becomes its long one."""
        for name, rest, target in (
            ("openai", b"/v1/chat/completions?a=%2F", b"/v1/chat/completions?a=%2F"),
            ("anthropic", b"/v1/messages?beta=true", b"/v1/messages?beta=true"),
            ("gemini", b"/v1beta/models/m:generateContent", b"/v1beta/models/m:generateContent"),
            ("gemini", b"/upload/v1/files?upload_id=1", b"/upload/v1/files?upload_id=1"),
            ("groq", b"/v1/chat/completions", b"/openai/v1/chat/completions"),
            ("groq", b"/openai/v1/chat/completions", b"/openai/v1/chat/completions"),
            ("groq", b"/v1/x?next=/v1/y", b"/openai/v1/x?next=/v1/y"),
            ("openai", b"", b"/"),
            ("openai", b"?a=1", b"/?a=1"),
        ):
            self.assertEqual(CATALOG[name].upstream_target(rest), target)

    def test_path_prefix(self) -> None:
        """A path in base_url comes first, and is not subject to rewriting."""
        groq = dataclasses.replace(CATALOG["groq"], base_url="http://gateway.test/v1/team")
        self.assertEqual(groq.upstream_target(b"/v1/models"), b"/v1/team/openai/v1/models")

    @given(st.binary(max_size=40))
    def test_bytes_stay(self, rest: bytes) -> None:
        """Whatever the bytes behind the prefix are, the upstream gets them as they are."""
        self.assertEqual(CATALOG["openai"].upstream_target(b"/" + rest), b"/" + rest)


class Dialects(SynchronousTestCase):
    """Whose shape an error has."""

    def test_by_path(self) -> None:
        """OpenAI-compatible endpoints of other providers are called with an OpenAI SDK, and answer it."""
        for name, path, dialect in (
            ("openai", b"/v1/chat/completions", "openai"),
            ("groq", b"/openai/v1/chat/completions", "openai"),
            ("anthropic", b"/v1/messages", "anthropic"),
            ("anthropic", b"/v1/chat/completions?x=1", "openai"),
            ("anthropic", b"/anthropic/v1/chat/completions", "openai"),
            ("anthropic", b"/v1/messages?next=/v1/chat/completions", "anthropic"),
            ("gemini", b"/v1beta/models/m:generateContent", "gemini"),
            ("gemini", b"/v1beta/openai/chat/completions", "openai"),
            ("gemini", b"/v1/openai/models", "openai"),
            ("gemini", b"/gemini/v1alpha/openai", "openai"),
            ("gemini", b"/v1beta/openaiish", "gemini"),
            ("gemini", b"", "gemini"),
        ):
            self.assertEqual(dialect_of(CATALOG[name], path), dialect, path)

    def test_model_in_path(self) -> None:
        """Gemini names the model in the path; it is decoded for people, without verb and query."""
        gemini = CATALOG["gemini"]
        for path, model in (
            (b"/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse", "gemini-2.5-pro"),
            (b"/v1/models/gemini-2.5-pro", "gemini-2.5-pro"),
            (b"/v1/tunedModels/a%20b:generateContent", "a b"),
            (b"/v1/models/%FF", "\ufffd"),
            (b"/v1/models", None),
            (b"/v1/files/x?y=/models/z", None),
            (b"/v1/models/" + b"m" * 257, None),
        ):
            self.assertEqual(model_in_path(gemini, path), model)
        self.assertIsNone(model_in_path(CATALOG["openai"], b"/v1/models/gpt-4o"))


class Kinds(SynchronousTestCase):
    """A provider by configuration alone."""

    def test_new_provider(self) -> None:
        """A name, a kind and an address make a provider that works like the built-in one of that kind."""
        mistral = of_kind("openai-compatible", name="mistral", base_url="https://api.mistral.ai/")
        self.assertEqual(mistral.sdk_path, "/mistral/v1")
        self.assertEqual(mistral.title, "mistral")
        self.assertEqual(mistral.user_path, ("user",))
        self.assertEqual(mistral.upstream_target(b"/v1/chat/completions"), b"/v1/chat/completions")
        self.assertEqual(mistral.health_report()["baseURL"], "https://api.mistral.ai")
        self.assertEqual(dialect_of(mistral, b"/v1/chat/completions"), "openai")

    def test_every_kind(self) -> None:
        """Each kind speaks the dialect of its family and has its SDK's base path."""
        made = {kind: of_kind(kind, name="x", base_url="http://x.test", title="X") for kind in KINDS}
        self.assertEqual({kind: each.sdk_path for kind, each in made.items()}, {
            "openai-compatible": "/x/v1",
            "anthropic": "/x",
            "gemini": "/x",
        })  # fmt: skip
        self.assertEqual(made["anthropic"].user_path, ("metadata", "user_id"))
        self.assertEqual({each.title for each in made.values()}, {"X"})

    def test_unknown_kind(self) -> None:
        """A kind that does not exist is an error, not a guess."""
        self.assertRaises(KeyError, of_kind, "bedrock", name="x", base_url="http://x.test")
