"""The resource tree: one child per provider, the same again below ``/meta/{user}/``, health, and a page at the root.

    /                                  what this is
    /health, /health/live, /health/ready
    /openai/...                        one child for each provider that is enabled
    /meta/{user}/openai/...            the same, with the user in the path
    anything else                      404 that names the prefixes

Segments are decoded to find the child, as twisted.web does; what goes upstream is cut from the raw target.
"""

from __future__ import annotations

from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET

from llmproxy.core.target import after_segments
from llmproxy.web.context import Context
from llmproxy.web.pages import Health, Index, NoRoute, unknown_route
from llmproxy.web.site import ProxyRequest


class ProviderResource(Resource):
    """Everything below one provider's prefix, with any method.

    :param segments: how many path segments lead here.
    """

    isLeaf = True

    def __init__(self, name: str, segments: int, meta_user: str | None = None) -> None:
        super().__init__()
        self._name = name
        self._segments = segments
        self._meta_user = meta_user

    def render(self, request: ProxyRequest) -> int:
        """Forward the request. ``/openai`` alone, without a path behind it, is no route."""
        exchange = request.exchange
        route = exchange.context.routes.get(self._name)
        rest = after_segments(request.uri, self._segments)
        if route is None:
            exchange.fail(unknown_route(exchange.context))
        elif not rest:
            # The prefix alone: what is missing is what follows it.
            exchange.fail(unknown_route(exchange.context, f"A path must follow /{self._name}/."))
        else:
            exchange.route_name = self._name if self._meta_user is None else "meta/" + self._name
            exchange.forward_to(route, self._meta_user, rest)
        return NOT_DONE_YET


class Branch(Resource):
    """A node that only leads on: as the end of a path it is the 404."""

    def render(self, request: ProxyRequest) -> int:
        """Name the prefixes that there are."""
        return NoRoute().render(request)


class Meta(Branch):
    """``/meta/{user}/{provider}/...``: the user's name is part of the base URL that a client is given."""

    def getChild(self, path: bytes, request: ProxyRequest) -> IResource:
        """A node for one user."""
        return MetaUser(path.decode("utf-8", "replace"))


class MetaUser(Branch):
    """The providers, for one user."""

    def __init__(self, user: str) -> None:
        super().__init__()
        self._user = user

    def getChild(self, path: bytes, request: ProxyRequest) -> IResource:
        """A provider's node, or the 404."""
        name = path.decode("utf-8", "replace")
        if name in request.exchange.context.routes:
            return ProviderResource(name, 3, self._user)
        return NoRoute()


class Root(Resource):
    """The root of the tree."""

    def __init__(self, context: Context) -> None:
        super().__init__()
        for name in context.routes:
            self.putChild(name.encode("ascii"), ProviderResource(name, 1))
        self.putChild(b"meta", Meta())
        self.putChild(b"health", Health())
        self.putChild(b"", Index())

    def getChild(self, path: bytes, request: ProxyRequest) -> IResource:
        """Not one of the children: the 404."""
        return NoRoute()
