"""Gemini's embeddings, and its answers that bill nothing."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.reading.gemini import Gemini
from llmproxy.core.reading.gemini_resources import GeminiEmbedding, GeminiResource
from llmproxy.core.usage import Counters, Usage
from tests.core.reading.recorded_gemini import as_json


class OtherTests(SynchronousTestCase):
    """Embeddings, and what bills nothing."""

    def test_embeddings(self) -> None:
        """Embeddings are final if they were counted, and to be estimated if not."""
        shape = GeminiEmbedding()
        shape.take_body(b'{"embedding":{"values":[0.1]},"usageMetadata":{"promptTokenCount":8}}')
        self.assertEqual((shape.reading(True).usage, shape.reading(True).counters), (Usage(input_tokens=8), "final"))
        shape = GeminiEmbedding()
        shape.take_body(b'{"embeddings":[{"values":[0.1]}]}')
        self.assertEqual((shape.reading(True).counters, shape.reading(True).reason), ("absent", "no_usage"))

    def test_free(self) -> None:
        """Counting, listing, files, caches and operations are free, and the reason is told."""
        for found, reason in (
            ({"totalTokens": 31, "promptTokensDetails": []}, "token_count"),
            ({"models": [], "nextPageToken": "x"}, "list"),
            ({"name": "files/abc", "mimeType": "image/png"}, "file"),
            ({"file": {"name": "files/abc"}}, "file"),
            ({"name": "cachedContents/1", "usageMetadata": {"totalTokenCount": 9}}, "cached_content"),
            ({"name": "models/x/operations/y", "done": True}, "operation"),
            ({"name": "models/gemini-3-pro"}, "model"),
        ):
            keys = {name: as_json(value) for name, value in found.items()}
            self.assertTrue(GeminiResource.recognises(keys), reason)
            self.assertFalse(Gemini.recognises(keys), reason)
            shape = GeminiResource()
            shape.take_body(as_json(found))
            self.assertEqual((shape.reading(True).counters, shape.reading(True).reason), (Counters.FREE, reason))
