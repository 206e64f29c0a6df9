"""What one value may be: each type says its name in words, and makes the value from what was written.

The rule: strict and exact. A number in quotes is not a number, an unquoted number is not text, NaN is
nothing. A message names no value; the caller shows it when it is no secret.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, Literal
from urllib.parse import urlsplit

_INTEGER: Final = re.compile(r"[+-]?(?:0|[1-9](?:_?[0-9])*)")
_NUMBER: Final = re.compile(r"[+-]?(?:0|[1-9](?:_?[0-9])*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_BOOLEANS: Final = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}

_LABEL: Final = r"(?!-)[A-Za-z0-9_-]{1,63}"  # RFC 1123, 2.1, and the underscore that some names have
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]+\]")
_AUTHORITY: Final = re.compile(rf"(?P<host>{_HOST.pattern})(?::(?P<port>[0-9]{{1,5}}))?")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, 5.6.2
_ENDPOINT: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*:.+")
_PATH: Final = re.compile(r"(?:/(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})*)*")  # RFC 3986, 3.3


@dataclass(frozen=True, slots=True)
class Value:
    """The type of one value."""

    type: str
    """In words that follow "must be": ``"a whole number, at least 0"``."""
    parse: Callable[[str], object]
    """Makes the value, or raises ValueError: with its own sentence, or empty for "must be" and ``type``."""
    takes: Literal["word", "text", "any"] = "text"
    """``word``: numbers and booleans, written without quotes. ``text``: what is neither. ``any``: both."""
    secret: bool = False
    """Never shown: not in a complaint, not in show-config."""


def is_word(text: str) -> bool:
    """Whether YAML reads ``text`` without quotes as a number or a boolean."""
    return text.lower() in _BOOLEANS or _NUMBER.fullmatch(text) is not None


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError from None


BOOLEAN: Final = Value("true or false", _boolean, "word")


def integer(at_least: int, at_most: int | None = None) -> Value:
    """A whole number in a range."""
    words = f"a whole number, at least {at_least}" + ("" if at_most is None else f" and at most {at_most}")

    def parse(text: str) -> int:
        # 20 digits are more than any limit here; Python refuses to convert thousands of them with an error of
        # its own.
        if not _INTEGER.fullmatch(text) or len(text) > 20:
            raise ValueError
        number = int(text)
        if number < at_least or (at_most is not None and number > at_most):
            raise ValueError
        return number

    return Value(words, parse, "word")


def _seconds(text: str) -> float:
    number = float(text) if _NUMBER.fullmatch(text) else math.nan
    # An infinite time cannot be handed to a reactor; what is meant by it is 0, or else a large number.
    if not (0 <= number < math.inf):
        raise ValueError
    return number + 0.0  # no -0.0


SECONDS_OR_OFF: Final = Value("a number of seconds, at least 0", _seconds, "word")
"""A time that may be without end: 0 is no limit."""


def _some_seconds(text: str) -> float:
    if not (number := _seconds(text)):
        raise ValueError
    return number


SECONDS: Final = Value("a number of seconds above 0", _some_seconds, "word")


def choice(*names: str, also: dict[str, str] | None = None, takes: Literal["word", "text", "any"] = "text") -> Value:
    """One of ``names``, in any case; ``also`` maps other spellings to one of them.

    ``takes``: "any" where one of them reads as a boolean, as ``off`` does.
    """
    known = {**(also or {}), **{name: name for name in names}}

    def parse(text: str) -> str:
        try:
            return known[text.lower()]
        except KeyError:
            raise ValueError(_not_a_choice(text, tuple(name for name in names if name))) from None

    return Value("one of " + ", ".join(name for name in names if name), parse, takes)


def _not_a_choice(text: str, names: tuple[str, ...]) -> str:
    """The sentence for a name that is none of ``names``."""
    from difflib import get_close_matches

    # 0.5, because "openai" has to find "openai-compatible".
    near = get_close_matches(text.lower(), names, 1, cutoff=0.5)
    return f"must be one of {', '.join(names)}" + (f"; did you mean {near[0]}?" if near else "")


def text(words: str = "text", *, secret: bool = False) -> Value:
    """Any text in one line. Empty is the same as not set."""

    def parse(given: str) -> str | None:
        if not given.isprintable():
            raise ValueError("must be one line of printable text")
        return given or None

    return Value(words, parse, secret=secret)


def _port(given: str) -> int | str:
    if _INTEGER.fullmatch(given):
        if 0 <= (number := int(given[:20])) <= 65535:
            return number
    elif _ENDPOINT.fullmatch(given) and given.isprintable():
        return given
    raise ValueError


PORT: Final = Value("a port number (0 to 65535) or an endpoint such as tcp:9002:interface=127.0.0.1", _port, "any")


def _url(given: str) -> str | None:
    """Scheme, host, optional port, optional path prefix. Not shown: people do write passwords into URLs."""
    if not given:
        return None
    # urlsplit takes tabs and line ends away without a word (WHATWG), so this comes first.
    if not given.isascii() or not given.isprintable() or " " in given:
        raise ValueError("must be a URL of printable ASCII characters without spaces")
    try:
        parts = urlsplit(given)
    except ValueError:
        raise ValueError("is not a URL") from None
    if parts.scheme not in ("http", "https") or not given.lower().startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    if "@" in parts.netloc:
        raise ValueError("must not carry a user name or password: callers bring their own keys")
    if "?" in given or "#" in given:
        raise ValueError("must end with its path: no query (?) and no fragment (#)")
    _authority(parts.netloc)
    path = parts.path.rstrip("/")
    if not _PATH.fullmatch(path) or "//" in path or any(one in (".", "..") for one in path.split("/")):
        raise ValueError("has a path that is no plain prefix such as /api")
    return f"{parts.scheme}://{parts.netloc.lower()}{path}"


def _authority(given: str) -> None:
    found = _AUTHORITY.fullmatch(given)
    if found is None:
        raise ValueError("must name a host, and perhaps a port: https://api.example.com:8443")
    if found["port"] is not None and not 0 < int(found["port"]) < 65536:
        raise ValueError("has a port that is not between 1 and 65535")
    if found["host"].startswith("["):
        try:
            ip_network(found["host"][1:-1])
        except ValueError:
            raise ValueError("has brackets around something that is not an IPv6 address") from None


URL: Final = Value("a URL with scheme, host, perhaps a port and a path prefix", _url)


def _redis_url(given: str) -> str | None:
    if not given:
        return None
    if not given.isprintable() or not given.startswith(("redis://", "rediss://")):
        raise ValueError("must begin with redis:// or rediss://")
    try:
        host = urlsplit(given).hostname
    except ValueError:
        host = None
    if not host:
        raise ValueError("must name a host: redis://host:6379/0")
    return given


REDIS_URL: Final = Value("a redis:// or rediss:// URL", _redis_url, secret=True)


def _redis_address(given: str) -> str | None:
    if given:
        try:
            _authority(given)
        except ValueError:
            raise ValueError from None
    return given or None


REDIS_ADDRESS: Final = Value("an address such as localhost:6379", _redis_address)


def _network(given: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(given)
    except ValueError as error:
        if "host bits" in str(error):
            near = ip_network(given, strict=False)
            raise ValueError(f"is an address inside a network; did you mean {near}?") from None
        raise ValueError from None


NETWORK: Final = Value("an IP address or a network such as 10.0.0.0/8", _network)


def _origin(given: str) -> str:
    if given in ("*", "null"):
        return given
    scheme, _, authority = given.partition("://")
    # A browser sends scheme, host and port in lower case and nothing behind them (RFC 6454, 6.2): anything
    # else here would never match.
    if not re.fullmatch("[a-z][a-z0-9+.-]*", scheme) or not authority or given != given.lower():
        raise ValueError
    _authority(authority)
    return given


ORIGIN: Final = Value("an origin such as https://app.example.com, or *", _origin)


def _token(given: str) -> str:
    if not _TOKEN.fullmatch(given):
        raise ValueError
    return given


METHOD: Final = Value("a method name such as POST", lambda given: _token(given).upper())
FIELD_NAME: Final = Value("a header field name, or *", _token)
