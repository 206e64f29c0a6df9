"""The stage of most tests: one proxy with default settings, and one upstream behind all of its providers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.live.certificates import Authority
from tests.live.conversation import Stage
from tests.live.proxy import all_providers, running_proxy
from tests.live.upstream import HOST, Upstream

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


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the proxies with TLS and their callers trust."""
    return Authority(Path(tmp_path_factory.mktemp("authority")))


@pytest.fixture(scope="session")
def _tls_stage(authority: Authority) -> Iterator[Stage]:
    upstream = Upstream(authority.server_context("upstream", HOST))
    certificate, key = authority.certificate("proxy", "localhost")
    config = {"providers": all_providers(upstream.url), "upstream": {"ca_file": str(authority.ca_file)}}
    port = f"ssl:0:interface={HOST}:privateKey={key}:certKey={certificate}"
    with running_proxy(config, port=port, tls=authority.client_context()) as proxy:
        yield Stage(proxy, upstream)
    upstream.close()


@pytest.fixture
def tls_stage(_tls_stage: Stage) -> Iterator[Stage]:
    """The same with TLS on both legs, under a private authority."""
    yield _tls_stage
    _tls_stage.clear()


@pytest.fixture(params=["tcp", "tls"])
def either_stage(request: pytest.FixtureRequest) -> Stage:
    """Each test twice: without TLS, and with TLS on both legs."""
    stage: Stage = request.getfixturevalue("stage" if request.param == "tcp" else "tls_stage")
    return stage
