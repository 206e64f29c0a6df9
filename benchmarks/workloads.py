"""What is measured: each workload as one or more runs of the load client.

W1   small JSON: 1, 16 and 64 connections, and an open loop at half the pace reached with 16
W2   SSE as fast as it goes: 16 connections, 200 events an answer
W3   1,000 streams of 20 events a second, the everyday case of an LLM proxy
W3b  100 streams of 20 events a second: what a proxy adds when it is not busy
W4   1 MB uploads, 8 at a time
W5   10 MB answers, 4 at a time
W6   idle streams: opened, one event each, then silence; then every client leaves at once
W7   start to the first 200, and memory then (taken at every start)
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

ALL = ("W1", "W2", "W3", "W3b", "W4", "W5", "W6", "W7")


@dataclass(frozen=True)
class Shape:
    """A provider's way of being asked: its path segment at the proxy, and its paths, plain and streaming."""

    prefix: str
    path: str
    stream_path: str

    def target(self, *, stream: bool, direct: bool) -> str:
        return ("" if direct else self.prefix) + (self.stream_path if stream else self.path)


SHAPES = {
    "openai": Shape("/openai", "/v1/chat/completions", "/v1/chat/completions"),
    "anthropic": Shape("/anthropic", "/v1/messages", "/v1/messages"),
    "gemini": Shape(
        "/gemini",
        "/v1beta/models/gemini-2.5-flash:generateContent",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent?alt=sse",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One run of the load client."""

    key: str
    workload: str
    conns: int
    mode: str = "closed"
    duration_s: float = 3.0
    warm_s: float = 0.5
    stream: bool = False
    knobs: str = ""
    body_bytes: int = 0
    #: Also run straight to the mock, so that the proxy's own delay can be told.
    direct: bool = False
    #: Events a second that the streams hold together, None: not paced.
    events_per_s: float | None = None
    timeout_s: float = 30.0
    #: Filled in when it is run.
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def one_answer(self) -> bool:
        """Whether its answers end, and so have a length that can be checked."""
        return self.mode != "hold"

    def load_options(self, scale: float) -> dict[str, Any]:
        """Options of the load client; `scale` shortens or lengthens what is timed."""
        return {
            "mode": self.mode,
            "conns": self.conns,
            "duration": round(self.duration_s * scale, 3),
            "warm": round(self.warm_s * scale, 3),
            "stream": 1 if self.stream else None,
            "knobs": self.knobs or None,
            "body": self.body_bytes or None,
            "timeout": self.timeout_s,
            **self.extra,
        }


def paced(key: str, streams: int, duration_s: float) -> Step:
    """Streams of 20 events a second each."""
    return Step(
        key=key,
        workload=key,
        mode="hold",
        conns=streams,
        duration_s=duration_s,
        stream=True,
        knobs="n=1000000,i=50000",
        direct=key == "W3b",
        events_per_s=streams * 20.0,
        timeout_s=60,
    )


def steps(only: Collection[str], idle_streams: int) -> list[Step]:
    """The runs of the chosen workloads, in order.

    The first is always small JSON on one connection: it warms the proxy up and tells how fast streams can be
    opened. Idle streams come next, before busier runs leave freed memory that would hide what a stream costs.
    """
    everything = [
        Step(key="W1c1", workload="W1", conns=1, warm_s=1, direct=True),
        Step(
            key="W6",
            workload="W6",
            mode="hold",
            conns=idle_streams,
            duration_s=2,
            stream=True,
            knobs="n=2,i=120000000",
            timeout_s=60,
        ),
        Step(key="W1c16", workload="W1", conns=16),
        Step(key="W1c64", workload="W1", conns=64),
        Step(key="W1half", workload="W1", mode="rate", conns=64, direct=True),
        Step(key="W2", workload="W2", conns=16, duration_s=4, warm_s=1, stream=True, knobs="n=200,i=0"),
        paced("W3b", 100, 4),
        paced("W3", 1000, 10),
        Step(key="W4", workload="W4", conns=8, body_bytes=1_000_000),
        Step(key="W5", workload="W5", conns=4, knobs="b=10000000"),
    ]
    return [step for step in everything if step.key == "W1c1" or step.workload in only]


def ramp_s(streams: int, requests_per_s: float) -> float:
    """Seconds over which streams are opened: at half the pace of single requests, so opening is no storm.

    At least 2 s for 1,000 streams, at most 30 s, in proportion for more or fewer.
    """
    for_a_thousand = min(30.0, max(2.0, 1000 / max(1.0, requests_per_s * 0.5)))
    return max(1.0, for_a_thousand * streams / 1000)


def with_ramp(step: Step, requests_per_s: float) -> Step:
    return replace(step, extra={"ramp": round(ramp_s(step.conns, requests_per_s), 3)})


def with_rate(step: Step, requests_per_s: float) -> Step:
    return replace(step, extra={"rate": round(requests_per_s, 2)})


def small_body(*, knobs: str, stream: bool) -> bytes:
    """A small request that tells the mock its knobs; good for every shape, since the mock looks no closer."""
    text = f"BENCH:{knobs}; hello"
    body: dict[str, object] = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}]}
    if stream:
        body["stream"] = True
    return json.dumps(body, separators=(",", ":")).encode()
