"""Gemini: generate, count, embed, upload."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from tests.simulate.caller import GEMINI, Answer, Simulator

CRLF = b"\r\n\r\n"
HI: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
TOOLS = [{"functionDeclarations": [{"name": "get_weather", "parameters": {
    "type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}]}]  # fmt: skip


def text_of(chunks: list[Any]) -> str:
    """The text without the thoughts."""
    parts = [part for chunk in chunks for part in chunk["candidates"][0]["content"]["parts"]]
    return "".join(part.get("text", "") for part in parts if not part.get("thought"))


class GenerateTests(SynchronousTestCase):
    """generateContent and streamGenerateContent."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _ask(self, verb: str = "generateContent", simulate: str = "", version: str = "v1beta", **more: Any) -> Answer:
        line = f"POST /{version}/models/gemini-2.5-flash:{verb}"
        return self.simulator.ask(line, HI | more, GEMINI, simulate)

    def test_whole(self) -> None:
        """Candidates, usage with thoughts apart, the model's version; the same in all three versions."""
        made = self._ask().json()
        usage = made["usageMetadata"]
        self.assertEqual(made["modelVersion"], "gemini-2.5-flash")
        self.assertEqual(made["candidates"][0]["finishReason"], "STOP")
        parts = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount")
        self.assertEqual(usage["totalTokenCount"], sum(usage[part] for part in parts))
        for version in ("v1", "v1alpha"):
            self.assertEqual(self._ask(version=version).json()["usageMetadata"], usage)

    def test_sse(self) -> None:
        """Lines end with CRLF, there is no [DONE], usage is in every chunk and only grows, the text is the same."""
        whole = self._ask().json()
        answer = self._ask("streamGenerateContent?alt=sse")
        self.assertEqual(answer.field("content-type"), "text/event-stream")
        chunks = answer.data(CRLF)
        self.assertEqual(text_of(chunks), text_of([whole]))
        counts = [chunk["usageMetadata"]["totalTokenCount"] for chunk in chunks]
        self.assertEqual(counts, sorted(counts))
        self.assertEqual(chunks[-1]["usageMetadata"], whole["usageMetadata"])
        self.assertEqual([c["candidates"][0].get("finishReason") for c in chunks[-2:]], [None, "STOP"])
        self.assertEqual(len(answer.pieces), len(chunks))

    def test_array(self) -> None:
        """Without alt=sse the stream is one JSON array, in pieces, with the same chunks."""
        answer = self._ask("streamGenerateContent")
        self.assertEqual(answer.field("content-type"), "application/json; charset=UTF-8")
        chunks = answer.json()
        self.assertEqual(text_of(chunks), text_of(self._ask("streamGenerateContent?alt=sse").data(CRLF)))
        self.assertIn(b"\n,\r\n{", answer.body)
        self.assertGreater(len(answer.pieces), 3)

    def test_no_text_at_all(self) -> None:
        """An answer of no events still ends with a chunk that has usage and the reason."""
        for verb in ("streamGenerateContent?alt=sse", "streamGenerateContent"):
            answer = self._ask(verb, "events=0,reasoning=0")
            chunks = answer.json() if "?" not in verb else answer.data(CRLF)
            self.assertEqual(len(chunks), 1)
            self.assertEqual(chunks[0]["candidates"][0]["finishReason"], "STOP")

    def test_tool_call(self) -> None:
        """A function call comes whole, in a stream too."""
        asked: dict[str, Any] = {"tools": TOOLS, "contents": [{"parts": [{"text": "weather"}]}]}
        for made in (self._ask(**asked).json(), self._ask("streamGenerateContent?alt=sse", **asked).data(CRLF)[-1]):
            call = made["candidates"][0]["content"]["parts"][0]["functionCall"]
            self.assertEqual(call, {"name": "get_weather", "args": {"city": "river"}})

    def test_thoughts(self) -> None:
        """Thoughts are counted for a thinking model, shown when asked (in either case style), off with budget 0."""
        for name in ("includeThoughts", "include_thoughts"):
            made = self._ask(generationConfig={"thinkingConfig": {name: True}}).json()
            self.assertEqual([p.get("thought") for p in made["candidates"][0]["content"]["parts"]], [True, None])
        first = self._ask(
            "streamGenerateContent?alt=sse", generationConfig={"thinkingConfig": {"includeThoughts": True}}
        )
        self.assertTrue(first.data(CRLF)[0]["candidates"][0]["content"]["parts"][0]["thought"])
        without = self._ask(generationConfig={"thinkingConfig": {"thinkingBudget": 0}}).json()
        self.assertNotIn("thoughtsTokenCount", without["usageMetadata"])

    def test_cached_and_cut(self) -> None:
        """Cached tokens are part of the prompt's; a limit ends with MAX_TOKENS."""
        usage = self._ask(simulate="cached=500").json()["usageMetadata"]
        self.assertEqual((usage["cachedContentTokenCount"], usage["promptTokenCount"]), (500, 500))
        made = self._ask(generationConfig={"maxOutputTokens": 4}).json()
        self.assertEqual(made["candidates"][0]["finishReason"], "MAX_TOKENS")

    def test_wishes_in_the_path(self) -> None:
        """The model in the path can carry wishes, percent-encoded or bare."""
        for model in ("gemini-2.5-flash+events=3+reasoning=0", "gemini-2.5-flash%2Bevents%3D3%2Breasoning%3D0"):
            made = self.simulator.ask(f"POST /v1/models/{model}:generateContent", HI, GEMINI).json()
            self.assertEqual(made["usageMetadata"]["candidatesTokenCount"], 3)
            self.assertEqual(made["modelVersion"], "gemini-2.5-flash")

    def test_count_and_embed(self) -> None:
        """countTokens says what the prompt costs; embeddings have the asked size, one or many."""
        counted = self._ask("countTokens").json()
        self.assertEqual(counted["totalTokens"], self._ask().json()["usageMetadata"]["promptTokenCount"])
        one = {"content": HI["contents"][0], "outputDimensionality": 5}
        embed = "POST /v1beta/models/gemini-embedding-001"
        made = self.simulator.ask(f"{embed}:embedContent", one, GEMINI).json()
        many = self.simulator.ask(f"{embed}:batchEmbedContents", {"requests": [one, one]}, GEMINI).json()
        self.assertEqual(len(made["embedding"]["values"]), 5)
        self.assertEqual(many["embeddings"], [made["embedding"], made["embedding"]])

    def test_errors_in_mid_stream(self) -> None:
        """SSE has an error event, the array an error element and its end."""
        events = self._ask("streamGenerateContent?alt=sse", "error_event=2").data(CRLF)
        self.assertEqual((len(events), events[-1]["error"]["status"]), (3, "UNAVAILABLE"))
        for sent in (0, 2):
            made = self._ask("streamGenerateContent", f"error_event={sent}").json()
            self.assertEqual((len(made), made[-1]["error"]["code"]), (sent + 1, 503))

    def test_models(self) -> None:
        """Listed under every version; under v1 when the key is Google's."""
        for path in ("/v1beta/models", "/v1/models", "/v1/models?key=x"):
            headers = {} if "key" in path else GEMINI
            made = self.simulator.ask(f"GET {path}", headers=headers).json()
            self.assertIn("models/gemini-2.5-flash", [m["name"] for m in made["models"]])
        one = self.simulator.ask("GET /v1beta/models/gemini-2.5-pro", headers=GEMINI).json()
        self.assertEqual(one["name"], "models/gemini-2.5-pro")


class RefusalTests(SynchronousTestCase):
    """Gemini says no."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _error(self, headers: dict[str, str], simulate: str = "", model: str = "gemini-2.5-flash") -> Any:
        answer = self.simulator.ask(f"POST /v1/models/{model}:generateContent", HI, headers, simulate)
        made = answer.json()["error"]
        self.assertEqual(made["code"], answer.status)
        return made

    def test_keys(self) -> None:
        """No key is 403; a wrong one is 400 with the reason API_KEY_INVALID; `key=` in the query will do."""
        self.assertEqual(self._error({})["status"], "PERMISSION_DENIED")
        wrong = self._error({"x-goog-api-key": "AIza-invalid"})
        self.assertEqual((wrong["code"], wrong["status"]), (400, "INVALID_ARGUMENT"))
        self.assertEqual(wrong["details"][0]["reason"], "API_KEY_INVALID")
        line = "POST /v1beta/models/gemini-2.5-flash:generateContent?key=AIza"
        self.assertEqual(self.simulator.ask(line, HI, {}).status, 200)

    def test_statuses(self) -> None:
        """Each status has its name; 429 tells the delay in its details, not in a field."""
        for status, name in ((404, "NOT_FOUND"), (500, "INTERNAL"), (503, "UNAVAILABLE"), (504, "DEADLINE_EXCEEDED")):
            self.assertEqual(self._error(GEMINI, f"status={status}")["status"], name)
        self.assertEqual(self._error(GEMINI, "", "missing-1")["status"], "NOT_FOUND")
        line = "POST /v1/models/gemini-2.5-flash:generateContent"
        answer = self.simulator.ask(line, HI, GEMINI, "status=429,retry_after=7")
        self.assertIsNone(answer.field("retry-after"))
        self.assertEqual(answer.json()["error"]["details"][-1]["retryDelay"], "7s")

    def test_the_array_has_its_errors_in_an_array(self) -> None:
        """A refused array stream is answered with an array."""
        answer = self.simulator.ask("POST /v1/models/m:streamGenerateContent", HI, GEMINI, "status=400")
        self.assertEqual(answer.json()[0]["error"]["code"], 400)


class UploadTests(SynchronousTestCase):
    """The resumable upload."""

    def setUp(self) -> None:
        self.simulator = Simulator()

    def _start(self, size: int = 6) -> str:
        headers = GEMINI | {
            "X-Goog-Upload-Protocol": "resumable",
            "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size),
            "X-Goog-Upload-Header-Content-Type": "text/plain",
        }
        answer = self.simulator.ask("POST /upload/v1beta/files", {"file": {"displayName": "d"}}, headers)
        self.assertEqual((answer.status, answer.body), (200, b""))
        self.assertEqual(answer.field("x-goog-upload-status"), "active")
        url = answer.field("x-goog-upload-url") or ""
        self.assertEqual(answer.field("x-goog-upload-control-url"), url)
        self.assertTrue(url.startswith("http://simulator.test/upload/v1beta/files?"), url)
        return url.removeprefix("http://simulator.test")

    def _send(self, path: str, command: str, body: bytes = b"", offset: int = 0) -> Answer:
        headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
        return self.simulator.ask(f"POST {path}", body, headers)

    def test_all_at_once(self) -> None:
        """start, then upload and finalize in one, without a key; the file is there afterwards."""
        answer = self._send(self._start(), "upload, finalize", b"abcdef")
        self.assertEqual(answer.field("x-goog-upload-status"), "final")
        made = answer.json()["file"]
        self.assertEqual((made["sizeBytes"], made["mimeType"], made["displayName"]), ("6", "text/plain", "d"))
        self.assertEqual((made["state"], made["uri"]), ("ACTIVE", f"http://simulator.test/v1beta/{made['name']}"))
        get = f"GET /v1beta/{made['name']}"
        self.assertEqual(self.simulator.ask(get, headers=GEMINI).json(), made)
        self.assertEqual(self.simulator.ask("GET /v1beta/files", headers=GEMINI).json()["files"], [made])
        self.assertEqual(self.simulator.ask(f"{get}:download?alt=media", headers=GEMINI).body, b"abcdef")
        self.assertEqual(self.simulator.ask(f"DELETE /v1beta/{made['name']}", headers=GEMINI).json(), {})
        self.assertEqual(self.simulator.ask(get, headers=GEMINI).status, 403)

    def test_in_pieces(self) -> None:
        """Pieces at their offsets, a query between, then finalize alone."""
        path = self._start()
        self.assertEqual(self._send(path, "upload", b"abc").field("x-goog-upload-status"), "active")
        asked = self._send(path, "query")
        self.assertEqual(asked.field("x-goog-upload-size-received"), "3")
        self.assertEqual(self._send(path, "upload", b"def", offset=9).status, 400)
        self._send(path, "upload", b"def", offset=3)
        made = self._send(path, "finalize").json()["file"]
        self.assertEqual(made["sizeBytes"], "6")

    def test_what_goes_wrong(self) -> None:
        """Too few bytes, an unknown upload, a cancelled one, a start without a key."""
        self.assertEqual(self._send(self._start(7), "upload, finalize", b"abcdef").status, 400)
        self.assertEqual(self._send("/upload/v1/files?upload_id=x", "query").status, 404)
        path = self._start()
        self.assertEqual(self._send(path, "cancel").field("x-goog-upload-status"), "cancelled")
        self.assertEqual(self._send(path, "query").status, 404)
        self.assertEqual(self.simulator.ask("POST /upload/v1/files", {}, {}).status, 403)

    def test_the_hash_is_googles(self) -> None:
        """sha256Hash is the base64 of the hexadecimal digest, as Google has it."""
        made = self._send(self._start(0), "upload, finalize").json()["file"]
        self.assertEqual(base64.b64decode(made["sha256Hash"]).decode(), hashlib.sha256(b"").hexdigest())
