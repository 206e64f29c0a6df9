"""The second line of defence for keys."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.observe.redact import without_keys

_CANARY = "c4n4ryS3cr3t_-x"


class WithoutKeys(SynchronousTestCase):
    """What is taken out, and what is not."""

    def test_shapes(self) -> None:
        """Keys of the known providers, and whatever stands in the known places, are not shown."""
        for text in (
            f"sk-proj-{_CANARY}",
            f"sk-ant-api03-{_CANARY}",
            f"gsk_{_CANARY}",
            f"AIza{_CANARY}",
            f"AQ.{_CANARY}",
            f"Bearer {_CANARY}",
            f"bearer  {_CANARY}",
            f"BEARER {_CANARY}",
            f"Basic {_CANARY}==",
            f"https://x.test/v1?alt=sse&key={_CANARY}&x=1",
            f"access_token={_CANARY}",
            f"api_key={_CANARY}",
            f"API_KEY={_CANARY}",
            f"x-api-key: {_CANARY}",
            f"(b'x-goog-api-key', b'{_CANARY}')",
            f"openai-insecure-api-key.{_CANARY}",
        ):
            with self.subTest(text=text):
                for line in (f"before {text} after", f"({text}) after", f'"{text}"after'):
                    clean = without_keys(line.encode()).decode()
                    self.assertNotIn("c4n4ry", clean)
                    self.assertIn("***", clean)
                    self.assertIn("after", clean)

    def test_json_stays_json(self) -> None:
        """A key inside a JSON string goes, the JSON stays whole."""
        inner = json.dumps({"x-api-key": _CANARY, "authorization": f"Bearer {_CANARY}"})
        clean = without_keys(json.dumps({"message": inner, "url": f"?key={_CANARY}"}).encode())
        self.assertNotIn(b"c4n4ry", clean)
        self.assertEqual(set(json.loads(clean)), {"message", "url"})

    def test_ordinary_text(self) -> None:
        """Words that only resemble a key stay: a log must stay readable."""
        text = b"task-management risk-assessment monkey=business gpt-4o resp_0123456789abcdef /v1/models sk-1"
        self.assertEqual(without_keys(text), text)
