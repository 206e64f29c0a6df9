"""The treq-shaped client: treq's call, without what treq does to a request and an answer.

treq's own client adds ``Accept-Encoding``, decodes bodies, keeps cookies, follows redirects and writes the URL
anew. A proxy must do none of these. This one keeps the call and hands everything to its agent as it is.
"""

from __future__ import annotations

from typing import Any

from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgent, IBodyProducer, IResponse


class ExactClient(HTTPClient):
    """``request(method, url, headers=, data=)`` without any wrapper around ``agent``.

    ``data`` is None or an ``IBodyProducer``. The answer is the agent's own IResponse. Other options of treq's are
    refused, not ignored.
    """

    def __init__(self, agent: IAgent) -> None:
        super().__init__(agent)
        self._exact: Any = agent

    def request(  # type: ignore[override]
        self,
        method: bytes,
        url: bytes,
        *,
        headers: Headers | None = None,
        data: IBodyProducer | None = None,
    ) -> Deferred[IResponse]:
        """One request, exactly as given; the Deferred is the agent's."""
        return self._exact.request(method, url, headers, data)  # type: ignore[no-any-return]
