r"""Where a member of a JSON object stands in its text, so that the text can be changed there and nowhere else.

The rule: the text is one that msgspec has read as an object, as it is or made `readable`; so brackets pair, and a
string that a colon follows is a key. A key counts however it is spelled ("us\u0061ge" is "usage"). Nesting is a count,
not a recursion, and the time is in proportion to the length. Grammar: RFC 8259.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_SPACE: Final = b" \t\r\n"
_NOT_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
# Lower-case letters and the underscore, written as \u005f, \u0061 to \u007a. Text in Latin script (\u00e9) and what is
# escaped for HTML (\u003c) are not among them.
_ESCAPED_LETTER: Final = re.compile(rb"\\u00[5-7]")
_HALF_OR_PAIR: Final = re.compile(rb"\\u[dD][89a-fA-F][0-9a-fA-F]{2}")


class Key(NamedTuple):
    """A key that is looked for: its usual spelling with its quotes, and patterns of the key, colon and white space."""

    literal: bytes
    plain: re.Pattern[bytes]
    any_spelling: re.Pattern[bytes]


class Place(NamedTuple):
    """Where a member's key begins (its quote), and where its value does."""

    key: int
    value: int


def key_of(name: str) -> Key:
    """The key `name`, which has small letters and underscores only."""
    letters = b"".join(b"(?:%c|\\\\u00(?i:%02x))" % (code, code) for code in name.encode())
    form = rb'"%b"[ \t\r\n]*+:[ \t\r\n]*+'
    return Key(b'"%b"' % name.encode(), re.compile(form % name.encode()), re.compile(form % letters))


def has_escaped_letters(text: bytes) -> bool:
    """Whether keys may be spelled in an unusual way."""
    return b"\\u00" in text and _ESCAPED_LETTER.search(text) is not None


def readable(text: bytes) -> bytes:
    r"""The text with question marks for what msgspec refuses although it is JSON, so that positions stay.

    That is half a surrogate pair, `"\ud83d"`: an emoji that was cut in two (RFC 8259, section 8.2). Whole pairs and
    escaped backslashes go too: no key and no word that anybody looks for has them.
    """
    return _HALF_OR_PAIR.sub(b"??????", text.replace(b"\\\\", b"??"))


def stands_once(text: bytes, key: Key) -> bool:
    """Whether `key`, which the object is known to have, is not repeated in it."""
    if text.count(key.literal) == 1 and not has_escaped_letters(text):
        return True
    return len(places(text, key)) == 1


def places(text: bytes, key: Key) -> list[Place]:
    """Where the object itself (not one inside it) has `key`, which it is known to have, in the order of the text."""
    pattern = key.any_spelling if has_escaped_letters(text) else key.plain
    if b"\\" in text:
        # Two bytes for two, so that positions stay; a quote that is left opens or closes a string.
        text = text.replace(b"\\\\", b"??").replace(b'\\"', b"??")
    found = [Place(match.start(), match.end()) for match in pattern.finditer(text)]
    if len(found) == 1:
        return found
    own = []
    depth = at = 0
    for place in found:
        begin = place.key
        brackets = b"".join(text[at:begin].split(b'"')[::2]).translate(None, _NOT_BRACKETS)
        depth += len(brackets) - 2 * (brackets.count(b"]") + brackets.count(b"}"))
        at = begin
        if depth == 1:
            own.append(place)
    return own


def with_member(text: bytes, member: bytes) -> bytes:
    """The text of an object with one more member, directly after its last one, or in it if it is empty."""
    inside = text.rstrip(_SPACE)[:-1].rstrip(_SPACE)
    comma = b"" if inside.endswith(b"{") else b","
    return inside + comma + member + text[len(inside) :]


def span(text: bytes, key: int, value_end: int) -> tuple[int, int]:
    """What to cut so that a member is gone as if its writer had left it out: begin and end.

    The comma and the white space between it and its neighbour go with it: those before it, or, if it is the first,
    those after it. Of an object that has no other member the two braces are left.

    :param key: where the member's key begins. :param value_end: where the first byte after its value is.
    """
    before = len(text[:key].rstrip(_SPACE))
    if text[before - 1 : before] == b",":
        return len(text[: before - 1].rstrip(_SPACE)), value_end
    after = _past_space(text, value_end)
    if text[after : after + 1] == b",":
        return key, _past_space(text, after + 1)
    return before, after


def _past_space(text: bytes, at: int) -> int:
    while text[at : at + 1] in (b" ", b"\t", b"\r", b"\n"):
        at += 1
    return at
