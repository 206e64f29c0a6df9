"""What the requests of one connection have in common, worked out once.

An SDK keeps its connection and sends the same key and the same User-Agent with every request. The last answer is
kept beside the question, for as long as the connection lives and no longer: nothing about a key outlives it.
"""

from __future__ import annotations

from llmproxy.config.model import Server
from llmproxy.core.fields import Fields
from llmproxy.core.identity import CredentialIds, client_address, credential_of, user_of
from llmproxy.observe.access import path_of, sdk_of
from llmproxy.wire.request import Request


class Caller:
    """The other end of one connection.

    :param peer_host: its address without a port; ``unix`` for a UNIX socket.
    """

    __slots__ = (
        "_address",
        "_agent",
        "_credential_id",
        "_credentials",
        "_path",
        "_path_text",
        "_sdk",
        "_user",
        "peer_host",
    )

    def __init__(self, peer_host: str) -> None:
        self.peer_host = peer_host
        self._credentials: tuple[bytes | None, ...] | None = None
        self._credential_id: str | None = None
        self._user = ""
        self._agent: bytes | None = None
        self._sdk = ""
        self._path = b""
        self._path_text = ""
        self._address: str | None = None

    def __repr__(self) -> str:
        """Without the key."""
        return f"<Caller {self.peer_host}>"

    def credential_id(self, request: Request, query: bytes, ids: CredentialIds) -> str | None:
        """The id of the request's credential, or None if it has none."""
        get = request.index.get
        credentials = (
            get(b"authorization"),
            get(b"x-api-key"),
            get(b"x-goog-api-key"),
            get(b"api-key"),
            get(b"sec-websocket-protocol"),
            query,
        )
        if credentials != self._credentials:
            self._credentials = credentials
            key = credential_of(request.fields, query)
            self._credential_id = ids.credential_id(key) if key else None
            self._user = ""
        return self._credential_id

    def user(self, request: Request, query: bytes, meta_user: str | None, body_user: str | None, address: str) -> str:
        """The user that the request is counted for, once :meth:`credential_id` has been asked."""
        if meta_user or body_user or query or b"x-user-id" in request.index or not self._user:
            user = user_of(
                meta_user=meta_user,
                fields=request.fields,
                body_user=body_user,
                query=query,
                credential_id=self._credential_id,
                address=address,
            )
            if self._credential_id is None or not user.startswith("token:"):
                return user
            self._user = user
        return self._user

    def sdk(self, user_agent: bytes | None) -> str:
        """The caller's software, from its User-Agent."""
        if user_agent != self._agent:
            self._agent = user_agent
            self._sdk = sdk_of(user_agent)
        return self._sdk

    def path(self, path: bytes) -> str:
        """The path as it may be logged."""
        if path != self._path:
            self._path = path
            self._path_text = path_of(path)
        return self._path_text

    def address(self, fields: Fields, server: Server) -> str:
        """The caller's own address, behind the trusted proxies if there are any."""
        if server.trusted_proxies:
            return client_address(self.peer_host, fields, server.trusted_proxies)
        if self._address is None:
            self._address = client_address(self.peer_host, fields, ())
        return self._address
