r"""Asking for the usage of an OpenAI-shaped stream in the caller's own JSON text: `with_include_usage`.

Such a stream tells its usage only if the request says `"stream_options": {"include_usage": true}`. The rule: one member
is added, or one value replaced, and every other byte of the text stays: white space, the order of keys, escapes,
numbers of any size, bytes in strings that are no UTF-8. Where readers could differ about what the text says (a key that
is repeated, in any spelling), or it is not what it should be, it is not edited, and the caller gets from the provider
what it would have got.

A member is added after the last one. So the text is the caller's own up to there, and whoever reads only its beginning
(for the model) reads what the caller wrote.

`include_usage: false` and `null` become `true`: what the provider then adds is taken out of the answer again
(core/usage_removal.py), so that the caller gets what it asked for. Other members of `stream_options` stay.

Source: https://platform.openai.com/docs/api-reference/chat/create, stream_options.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from llmproxy.core.json_places import key_of, places, readable, stands_once, with_member

_STREAM: Final = key_of("stream")
_STREAM_OPTIONS: Final = key_of("stream_options")
_INCLUDE_USAGE: Final = key_of("include_usage")

_ASKED: Final = b'{"include_usage":true}'
_ASKED_MEMBER: Final = b'"include_usage":true'
_OPTIONS_MEMBER: Final = b'"stream_options":{"include_usage":true}'


class Edit(NamedTuple):
    """What became of a request.

    body: the text to send instead; None: it was not edited. reason: then why, a word or some with underscores:

    asked: the caller asked itself. not_a_stream: `stream` is not the literal true. empty, not_json, no_object,
    nested_too_deep: what the text is. repeated_key: `stream`, `stream_options` or `include_usage` is there twice.
    stream_options_not_an_object, include_usage_not_a_boolean: the provider is going to refuse it in its own words.
    """

    body: bytes | None
    reason: str


class _Request(msgspec.Struct, gc=False):
    stream: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    stream_options: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Options(msgspec.Struct, gc=False):
    include_usage: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


# Members that have no name here are skipped at the speed of C, and checked to be JSON.
_REQUEST: Final = msgspec.json.Decoder(_Request)
_OPTIONS: Final = msgspec.json.Decoder(_Options)

_REPEATED: Final = Edit(None, "repeated_key")


def with_include_usage(body: bytes) -> Edit:
    """The body of a request for a stream, asking for its usage. Never raises; time in proportion to the length."""
    try:
        try:
            said = _REQUEST.decode(body)
        except (msgspec.DecodeError, ValueError):
            said = _REQUEST.decode(readable(body))
    except msgspec.ValidationError:
        return Edit(None, "no_object")
    except (msgspec.MsgspecError, ValueError):
        return Edit(None, "not_json" if body else "empty")
    except RecursionError:
        return Edit(None, "nested_too_deep")
    stream, options = said.stream, said.stream_options
    if stream is msgspec.UNSET:
        return Edit(None, "not_a_stream")
    if not stands_once(body, _STREAM):
        return _REPEATED
    if bytes(stream) != b"true":
        return Edit(None, "not_a_stream")
    if options is msgspec.UNSET:
        return Edit(with_member(body, _OPTIONS_MEMBER), "")
    found = places(body, _STREAM_OPTIONS)
    if len(found) != 1:
        return _REPEATED
    begin = found[0].value
    end = begin + len(bytes(options))
    edit = _with_option(bytes(options), body[begin:end])
    if edit.body is None:
        return edit
    return Edit(body[:begin] + edit.body + body[end:], "")


def _with_option(text: bytes, options: bytes) -> Edit:
    """The value of `stream_options`, asking for the usage. text: the same as msgspec can read it."""
    if options == b"null":
        return Edit(_ASKED, "")
    if not options.startswith(b"{"):
        return Edit(None, "stream_options_not_an_object")
    said = _OPTIONS.decode(text).include_usage
    if said is msgspec.UNSET:
        return Edit(with_member(options, _ASKED_MEMBER), "")
    found = places(options, _INCLUDE_USAGE)
    if len(found) != 1:
        return _REPEATED
    value = bytes(said)
    if value == b"true":
        return Edit(None, "asked")
    if value not in (b"false", b"null"):
        return Edit(None, "include_usage_not_a_boolean")
    begin = found[0].value
    return Edit(options[:begin] + b"true" + options[begin + len(value) :], "")
