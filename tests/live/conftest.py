"""The stage of most tests: one proxy with default settings, and one upstream behind all of its providers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.live.conversation import Stage
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import Upstream

settings.register_profile(
    "live",
    max_examples=60,
    deadline=None,
    derandomize="CI" in os.environ,
    # The upstream of a test is the same for all of its examples, and is meant to be.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("live")


@pytest.fixture(scope="session")
def _default_stage() -> Iterator[Stage]:
    upstream = Upstream()
    providers = {
        **all_providers(upstream.url),
        "mistral": {"kind": "openai-compatible", "base_url": upstream.url + "/base/Path%2F"},
    }
    with running_proxy({"providers": providers}) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def stage(_default_stage: Stage) -> Iterator[Stage]:
    """The proxy with default settings; the upstream has no connection yet."""
    yield _default_stage
    _default_stage.clear()
