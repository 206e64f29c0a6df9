"""What we forward, read by Node's HTTP server: a third opinion beside h11's and our own. Starts one program."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import grammar
from tests.fuzz.corpus import entries
from tests.fuzz.examples import examples
from tests.fuzz.laboratory import CallerLaboratory
from tests.fuzz.readers import Message, Pairs, read_requests

SCRIPT = Path(__file__).with_name("node_reader.mjs")
Read = tuple[list[Message], str | None]


@pytest.fixture(scope="module")
def node() -> str:
    """The program. In CI there must be one."""
    found = shutil.which("node")
    if found is None and not os.environ.get("CI"):
        pytest.skip("node is not installed")
    assert found is not None, "node is not installed"
    return found


def _pairs(flat: list[str]) -> Pairs:
    raw = [text.encode("latin-1") for text in flat]
    return list(zip(raw[::2], raw[1::2], strict=True))


def read_by_node(node: str, streams: list[bytes]) -> list[Read]:
    """What Node's server reads in each of `streams`, and its error where it stops."""
    lines = b"".join(base64.b64encode(stream) + b"\n" for stream in streams)
    done = subprocess.run([node, str(SCRIPT)], input=lines, capture_output=True, timeout=600, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == len(streams)
    return [
        (
            [
                Message(
                    each["method"].encode("latin-1"),
                    each["target"].encode("latin-1"),
                    _pairs(each["fields"]),
                    base64.b64decode(each["body"]),
                    _pairs(each["trailers"]),
                )
                for each in answer["requests"]
            ],
            answer["error"],
        )
        for answer in answers
    ]


@dataclass(frozen=True, slots=True)
class Sent:
    """What went upstream on one connection: its bytes, and the complete requests that the proxy believes them to be."""

    raw: bytes
    believed: list[Message]


def say(pieces: list[bytes]) -> list[Sent]:
    """What goes upstream when a caller says these. One caller's requests go over one connection, if it lives."""
    outcome = CallerLaboratory().run(pieces)
    believed = [told.as_message() for told in outcome.forwarded if told.is_complete()]
    return [Sent(raw, believed) for raw in outcome.raw if raw] if len(outcome.raw) == 1 else []


def compare(node: str, sent: list[Sent]) -> int:
    """Node's opinion, h11's and ours of all of these; returns how many requests they are."""
    total = 0
    for each, (theirs, error) in zip(sent, read_by_node(node, [each.raw for each in sent]), strict=True):
        h11s = read_requests(each.raw)
        assert theirs == h11s.requests, f"of {each.raw!r} Node reads {theirs}, h11 {h11s.requests}"
        # What a caller did not send to its end has no end here either; nothing else may stop a reader.
        assert (error is None) == (h11s.begun is None), f"of {each.raw!r} Node reads no further: {error}"
        for ours, read in zip(each.believed, theirs, strict=True):
            assert (ours.method, ours.target, ours.fields) == (read.method, read.target, read.fields)
            assert ours.body == read.body
        total += len(theirs)
    return total


@pytest.mark.slow
def test_corpus(node: str) -> None:
    """Whatever of the corpus reaches a provider is the same request for Node, for h11 and for us."""
    sent = [each for entry in entries("requests") for each in say([entry.data])]
    assert compare(node, sent) > 50


@pytest.mark.slow
def test_generated(node: str) -> None:
    """And so are some hundred pipelines, good ones and broken ones, of which something goes upstream."""
    sent: list[Sent] = []
    good = st.lists(grammar.requests(own=False), min_size=1, max_size=4).map(lambda said: b"".join(s.raw for s in said))

    @settings(max_examples=examples(250), phases=[Phase.generate], database=None)
    @given(st.data(), good | grammar.mutated(good))
    def gather(data: st.DataObject, raw: bytes) -> None:
        sent.extend(say(data.draw(grammar.pieces(raw))))

    gather()
    assert compare(node, sent) > 200
    # Node is an opinion only if it can dissent.
    assert read_by_node(node, [b"GET / HTTP/1.1\r\nHost : x\r\n\r\n"]) == [([], "HPE_INVALID_HEADER_TOKEN")]
