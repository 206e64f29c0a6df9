"""The breakages: for each room of the program and each promise, ways in which it could be broken.

A breakage is one change of one file, small as a slip of the pen. ``tests`` are those that must fail under it, every
one. They take a second or two and need no sockets, so that all of this runs in a minute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Breakage:
    """One change that a user would suffer from.

    name: group, then what is broken. file: below llmproxy/. old: occurs exactly once there. tests: below tests/, as
    ``folder/test_x.py::Class::test``, separated by spaces.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str


BREAKAGES: Final = (
    # -- framing: two readers that disagree about where a message ends ---------------------------------------
    Breakage(
        "framing: any Host is a host",
        "core/framing.py",
        "elif _HOST.match(host) is None:",
        "elif False:",
        "core/test_framing.py::Heads::test_hosts wire/test_server.py::Refusing::test_host",
    ),
    Breakage(
        "framing: a length beside a transfer coding is taken",
        "core/framing.py",
        'raise FramingError(400, "a message has either a Content-Length or a Transfer-Encoding")',
        "return BodyFraming(LENGTH, int(length))",
        "core/test_framing.py::RequestBodies::test_both",
    ),
    Breakage(
        "framing: any transfer coding is chunked",
        "core/framing.py",
        'raise FramingError(501, "the only transfer coding understood here is chunked")',
        "pass",
        "core/test_framing.py::RequestBodies::test_codings wire/test_server.py::Refusing::test_framing",
    ),
    Breakage(
        "framing: +5 and 1_0 are lengths",
        "core/framing.py",
        're.compile(rb"[0-9]{1,19}\\Z")',
        're.compile(rb"[+]?[0-9_]{1,19}\\Z")',
        "core/test_framing.py::RequestBodies::test_lengths core/test_framing.py::ResponseBodies::test_untrusted",
    ),
    Breakage(
        "framing: what follows a refused head is served",
        "wire/request_reader.py",
        "        self._deaf = True\n        if error is None:\n",
        "        self._deaf, self._refusal = False, None\n        if error is None:\n",
        "wire/test_server.py::Refusing::test_the_answer_is_not_lost",
    ),
    Breakage(
        "framing: an answer with two lengths is taken",
        "core/framing.py",
        'raise FramingError(502, "the answer\'s Content-Length is not one plain number")',
        "return UNTIL_CLOSE_BODY",
        "core/test_framing.py::ResponseBodies::test_untrusted",
    ),
    # -- routing: a caller chooses no server -----------------------------------------------------------------
    Breakage(
        "routing: the origin's authority may go on",
        "upstream/origin.py",
        'if not uri.startswith(self._root) or target[:1] != b"/":',
        "if not uri.startswith(self._root):",
        "upstream/test_confined.py::Confined::test_other_places",
    ),
    Breakage(
        "routing: the absolute form may name any server",
        "core/framing.py",
        "if authority not in own():",
        "if False:",
        "web/test_deadlines.py::Malformed::test_absolute_form",
    ),
    Breakage(
        "routing: any target is a path",
        "core/framing.py",
        'raise FramingError(400, "the request target must be a path")',
        "pass",
        "core/test_framing.py::Heads::test_targets wire/test_server.py::Refusing::test_request_lines",
    ),
    Breakage(
        "routing: the caller's Host goes upstream",
        "web/heads.py",
        "host = None if switches.preserve_host else route.authority",
        "host = None",
        "web/test_deadlines.py::Malformed::test_absolute_form",
    ),
    # -- fields ----------------------------------------------------------------------------------------------
    Breakage(
        "fields: what Connection names is passed on",
        "core/fields.py",
        "        if options:\n",
        "        if False:\n",
        "core/test_fields.py::Forwarding::test_named_by_connection",
    ),
    Breakage(
        "fields: the credentials for this proxy are passed on",
        "core/fields.py",
        '        b"proxy-authorization",\n',
        "",
        "web/test_fidelity.py::RequestFields::test_hop_by_hop",
    ),
    Breakage(
        "fields: a head that holds another goes upstream",
        "upstream/origin.py",
        "if not f.is_one_head(head, len(fields)):",
        "if False:",
        "upstream/test_origin.py::Confined::test_injection",
    ),
    Breakage(
        "fields: a trailer may carry credentials",
        "core/fields.py",
        '    b"authorization",\n',
        "",
        "core/test_fields.py::Forwarding::test_trailers",
    ),
    Breakage(
        "fields: a reason phrase may hold a NUL",
        "wire/client.py",
        'if self._reason != b"OK" and _NOT_IN_REASON.search(self._reason) is not None:',
        "if False:",
        "wire/test_client_hostile.py::Heads::test_reason_phrase",
    ),
    # -- deadlines towards callers ---------------------------------------------------------------------------
    Breakage(
        "callers' deadlines: none",
        "wire/channel.py",
        "            self.deadline = now() + timeout_s\n",
        "            self.deadline = inf\n",
        "web/test_deadlines.py::Heads::test_behind_another web/test_deadlines.py::Heads::test_drips",
    ),
    Breakage(
        "callers' deadlines: a head has its time again with each byte",
        "wire/request_reader.py",
        "        if self._waits_for != HEAD and not self._reading_held:\n",
        "        if True:\n",
        "web/test_deadlines.py::Heads::test_drips",
    ),
    Breakage(
        "callers' deadlines: a body may stop coming",
        "wire/request_reader.py",
        "        if not self._reading_held:\n            self._wait(BODY",
        "        if False:\n            self._wait(BODY",
        "web/test_deadlines.py::Bodies::test_stalls",
    ),
    Breakage(
        "callers' deadlines: an answer need not be taken",
        "wire/channel.py",
        "elif now - self._unsent_since >= timeout_s:",
        "elif False:",
        "web/test_deadlines.py::Readers::test_stalled web/test_deadlines.py::Readers::test_the_end_is_not_taken",
    ),
    Breakage(
        "callers' deadlines: a connection may idle for ever",
        "wire/channel.py",
        "self._wait(NEXT, self.site.limits.keepalive_timeout_s)",
        "pass",
        "web/test_deadlines.py::Connections::test_keepalive",
    ),
    # -- deadlines towards providers -------------------------------------------------------------------------
    Breakage(
        "providers' deadlines: an answer need not come",
        "wire/client.py",
        "elif self.deadline is None or self.deadline > now:",
        "elif True:",
        "wire/test_client.py::Deadlines::test_first_byte",
    ),
    Breakage(
        "providers' deadlines: an upload need not be taken",
        "wire/client.py",
        "return not self._idle_timeout_s or now - self._stalled_at < self._idle_timeout_s",
        "return True",
        "wire/test_client.py::Deadlines::test_held_body_that_is_not_taken",
    ),
    Breakage(
        "providers' deadlines: a connection need not be made",
        "wire/dial.py",
        "        if d._timeout_s:\n",
        "        if False:\n",
        "wire/test_dial.py::Plain::test_too_slow wire/test_dial.py::Secure::test_proxy_silent",
    ),
    Breakage(
        "providers' deadlines: a line without end",
        "upstream/origin.py",
        "if longest and now - s.asked_at >= longest",
        "if False",
        "upstream/test_line.py::Line::test_too_long",
    ),
    Breakage(
        "providers' deadlines: the caller's slowness counts",
        "wire/client.py",
        "if self._idle_timeout_s and not self._read_held:",
        "if self._idle_timeout_s:",
        "wire/test_client.py::Deadlines::test_not_for_what_comes_after_the_pause",
    ),
    # -- bounds ----------------------------------------------------------------------------------------------
    Breakage(
        "bounds: an announced body of any size",
        "wire/request_reader.py",
        "if limits.max_body_bytes and body.length_bytes > limits.max_body_bytes:",
        "if False:",
        "web/test_deadlines.py::Bodies::test_too_large",
    ),
    Breakage(
        "bounds: a chunked body of any size",
        "wire/request_reader.py",
        "if most and self._body_bytes > most:",
        "if False:",
        "web/test_deadlines.py::Bodies::test_grows_too_large",
    ),
    Breakage(
        "bounds: a head of any size",
        "wire/request_reader.py",
        "if self._refusal is None and self._head_bytes > limits.max_header_bytes:",
        "if False:",
        "wire/test_server.py::Refusing::test_size web/test_deadlines.py::Malformed::test_fields",
    ),
    Breakage(
        "bounds: trailers of any size",
        "wire/request_reader.py",
        "if self._refusal is None and self._empty_bytes > MAX_EMPTY_BYTES:",
        "if False:",
        "wire/test_server.py::Refusing::test_endless_emptiness",
    ),
    Breakage(
        "bounds: any number of requests",
        "web/exchange.py",
        "if most and site.in_flight >= most:",
        "if False:",
        "web/test_deadlines.py::Connections::test_too_many_requests",
    ),
    Breakage(
        "bounds: a request that has ended is counted for ever",
        "web/exchange.py",
        "self.request.site.in_flight -= 1",
        "pass",
        "web/test_deadlines.py::Connections::test_too_many_requests",
    ),
    Breakage(
        "bounds: any number of connections to a provider",
        "upstream/origin.py",
        "return not most or len(self._open) + len(self._dialling) < most",
        "return True",
        "upstream/test_line.py::Line::test_a_connection_that_is_not_quiet upstream/test_line.py::Line::test_full",
    ),
    Breakage(
        "bounds: an address that has left is counted for ever",
        "wire/server.py",
        "self._per_host[host] -= 1",
        "pass",
        "web/test_deadlines.py::Connections::test_per_address",
    ),
    # -- a cut answer looks cut ------------------------------------------------------------------------------
    Breakage(
        "cut: the end of an upstream's connection ends the answer well",
        "web/exchange.py",
        "if isinstance(reason.value, ResponseDone | PotentialDataLoss):",
        "if True:",
        "web/test_exchange.py::UpstreamFails::test_dies_within_its_answer",
    ),
    Breakage(
        "cut: a last chunk is added",
        "wire/request.py",
        "        channel = self.channel\n        if channel is None or self.finished:\n            return\n",
        "        channel = self.channel\n        if channel is None or self.finished:\n            return\n"
        '        if self.chunked:\n            self._pending.append(b"0\\r\\n\\r\\n")\n',
        "wire/test_server.py::Answering::test_a_page_that_raises wire/test_server.py::Answering::test_aborted",
    ),
    Breakage(
        "cut: an answer that ends with its connection is not reset",
        "wire/request.py",
        "        if self._close_delimited:\n            channel.abortConnection()",
        "        if False:\n            channel.abortConnection()",
        "wire/test_server.py::Answering::test_aborted",
    ),
    Breakage(
        "cut: an answer that is too short is complete",
        "wire/client.py",
        "if error is None and response.body.kind == framing.UNTIL_CLOSE and",
        "if error is None and",
        "wire/test_client.py::Unusable::test_cut web/test_exchange.py::UpstreamFails::test_dies_within_its_answer",
    ),
    Breakage(
        "cut: TLS that ends without its alert is complete",
        "wire/tls.py",
        "if reason.check(ConnectionDone) is not None and not self._closed_cleanly:",
        "if False:",
        "wire/test_tls.py::Talking::test_cut",
    ),
    Breakage(
        "cut: an upload that broke off is ended well",
        "wire/client.py",
        "        if self._uploading:\n            self._uploading = False\n            self.abort()\n",
        "        self._upload_done(None)\n",
        "wire/test_client.py::Requests::test_body_that_breaks_off",
    ),
    # -- cancelling ------------------------------------------------------------------------------------------
    Breakage(
        "cancelling: a caller that leaves is not told upstream",
        "web/exchange.py",
        "self._may_read_on():\n            self.settle(EndReason.CLIENT_GONE)\n            self._drop_upstream()\n",
        "self._may_read_on():\n            self.settle(EndReason.CLIENT_GONE)\n",
        "web/test_exchange.py::CallerGone::test_before_the_answer",
    ),
    Breakage(
        "cancelling: a request that has no answer yet goes on",
        "web/exchange.py",
        "pending.cancel()",
        "pass",
        "web/test_exchange.py::CallerGone::test_before_the_answer",
    ),
    Breakage(
        "cancelling: an answer that has begun goes on",
        "wire/response.py",
        "            self._connection.abort()\n",
        "            pass\n",
        "wire/test_client.py::Flow::test_stop web/test_exchange.py::CallerGone::test_while_it_does_not_read",
    ),
    Breakage(
        "cancelling: a caller that is not read from cannot leave",
        "wire/server.py",
        "        if state == GONE:\n",
        "        if False:\n",
        "web/test_left_behind.py::InLine::test_unread",
    ),
    # -- back-pressure ---------------------------------------------------------------------------------------
    Breakage(
        "back-pressure: a caller that does not read holds nobody",
        "upstream/relay.py",
        "self._request.registerProducer(transport, True)",
        "pass",
        "upstream/test_relay.py::Relaying::test_pace web/test_fidelity.py::AnswerBody::test_back_pressure",
    ),
    Breakage(
        "back-pressure: a provider that does not read holds nobody",
        "upstream/upload.py",
        "        self._paused = True\n        self._request.pause_body()\n",
        "        pass\n",
        "upstream/test_upload.py::Producing::test_pace web/test_fidelity.py::RequestBody::test_back_pressure",
    ),
    Breakage(
        "back-pressure: requests pile up behind one another",
        "wire/request_reader.py",
        "        elif self._waiting:\n            self.hold_reading()\n",
        "        elif self._waiting:\n            pass\n",
        "wire/test_server.py::Reading::test_one_after_the_other",
    ),
    Breakage(
        "back-pressure: answers pile up that nobody takes",
        "wire/channel.py",
        "        self._throttled = True\n",
        "        self._throttled = False\n",
        "web/test_one_after_another.py::Taken::test_own_answers",
    ),
    Breakage(
        "kept connections: an upstream that speaks first is asked",
        "upstream/origin.py",
        "        if connection.spoke_first():\n",
        "        if False:\n",
        "upstream/test_origin.py::SpeaksFirst::test_it_is_not_asked",
    ),
    Breakage(
        "framing: behind a counted body that was the last one more is read",
        "wire/request_reader.py",
        "        self.on_message_complete()\n        if self._is_last():\n",
        "        self.on_message_complete()\n        if False:\n",
        "web/test_one_after_another.py::Last::test_in_a_later_read",
    ),
    Breakage(
        "back-pressure: a body piles up that nobody takes",
        "wire/request.py",
        "                self.channel.hold_reading()\n        else:\n            self._receiver",
        "                pass\n        else:\n            self._receiver",
        "wire/test_server.py::Reading::test_body_before_it_is_wanted",
    ),
    # -- sending again ---------------------------------------------------------------------------------------
    Breakage(
        "sending again: a POST that may have been read",
        "upstream/origin.py",
        "if not held or (error.sent_bytes > 0 and sending.method not in IDEMPOTENT):",
        "if not held:",
        "upstream/test_origin.py::SendingAgain::test_rule",
    ),
    Breakage(
        "sending again: for ever",
        "upstream/origin.py",
        "if not error.reused or sending.first_try is not None or",
        "if not error.reused or",
        "upstream/test_line.py::Line::test_sent_again",
    ),
    Breakage(
        "sending again: after a byte of an answer",
        "wire/client.py",
        "            if self._answer_begun:\n",
        "            if False:\n",
        "wire/test_client.py::Unusable::test_cut_in_the_head",
    ),
    # -- connections that are kept ---------------------------------------------------------------------------
    Breakage(
        "kept connections: one that sent more than the answer to a HEAD",
        "wire/client.py",
        "            if self._complete:\n                self._keep = False\n                return\n",
        "            if self._complete:\n                return\n",
        "wire/test_client.py::Unusable::test_surplus wire/test_client_hostile.py::Poison::test_surplus",
    ),
    Breakage(
        "kept connections: one on which a second answer came",
        "wire/client.py",
        "        if self._complete:\n            self._keep = False\n        self._reason",
        "        self._reason",
        "wire/test_client.py::Unusable::test_surplus wire/test_client_hostile.py::Poison::test_surplus",
    ),
    Breakage(
        "kept connections: one that spoke unasked",
        "wire/client.py",
        "            if not self.closed:\n                self.abort()\n            return\n",
        "            return\n",
        "wire/test_client.py::Unusable::test_surplus wire/test_client.py::Unusable::test_unasked",
    ),
    Breakage(
        "kept connections: one that is dead already",
        "upstream/origin.py",
        "if not connection.closed and connection.is_quiet():",
        "if not connection.closed:",
        "upstream/test_quiet.py::Quiet::test_asked_before_use",
    ),
    Breakage(
        "kept connections: one in the middle of a request",
        "wire/client.py",
        "abandoned = self._uploading or self._writer.pending",
        "abandoned = False",
        "wire/test_client.py::Requests::test_early_answer",
    ),
    # -- the end of service ----------------------------------------------------------------------------------
    Breakage(
        "draining: answers do not say so",
        "wire/request.py",
        "        if channel.site.draining:\n",
        "        if False:\n",
        "web/test_deadlines.py::Draining::test_order",
    ),
    Breakage(
        "draining: idle connections stay",
        "wire/server.py",
        "            channel.close_if_idle()\n",
        "            pass\n",
        "web/test_deadlines.py::Draining::test_order",
    ),
    Breakage(
        "draining: what is cut has no event",
        "web/site.py",
        "cast(ProxyRequest, request).end_by_drain()",
        "pass",
        "web/test_deadlines.py::Draining::test_cut",
    ),
    Breakage(
        "draining: without end",
        "lifecycle/drain.py",
        "        if limits.drain_timeout_s:\n",
        "        if False:\n",
        "lifecycle/test_drain.py::Steps::test_deadline",
    ),
    # -- TLS towards providers -------------------------------------------------------------------------------
    Breakage(
        "TLS: a certificate of any name",
        "wire/tls.py",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n    context.check_hostname = False\n",
        "wire/test_tls.py::Trust::test_bad",
    ),
    Breakage(
        "TLS: a certificate of anybody",
        "wire/tls.py",
        "    context.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "    context.check_hostname = False\n    context.verify_mode = ssl.CERT_NONE\n",
        "wire/test_tls.py::Trust::test_bad",
    ),
    Breakage(
        "TLS: any version",
        "wire/tls.py",
        "context.minimum_version = ssl.TLSVersion.TLSv1_2",
        "context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED",
        "wire/test_tls_versions.py::Versions::test_lowest",
    ),
    # -- one event for each request --------------------------------------------------------------------------
    Breakage(
        "events: two for one request",
        "web/exchange.py",
        "        if self.settled:\n            return\n        self.settled = True\n",
        "        self.settled = True\n",
        "web/test_exchange.py::Whole::test_compressed_body web/test_exchange.py::Whole::test_early_answer",
    ),
    Breakage(
        "events: none for a caller that left",
        "web/exchange.py",
        "self._may_read_on():\n            self.settle(EndReason.CLIENT_GONE)",
        "self._may_read_on():\n            self.settled = True",
        "web/test_exchange.py::CallerGone::test_before_the_answer",
    ),
    # -- accounting ------------------------------------------------------------------------------------------
    Breakage(
        "accounting: what cannot be read is free",
        "accounting/account.py",
        "if self.model is not None or reading.text_characters or reading.counters is Counters.RUNNING:",
        "if reading.text_characters or reading.counters is Counters.RUNNING:",
        "web/test_accounting.py::Whole::test_nonsense_is_not_free",
    ),
    Breakage(
        "accounting: a cut stream is free of what came after its counters",
        "accounting/account.py",
        "if reading.text_characters_after:",
        "if False:",
        "accounting/test_account.py::Cut::test_partial",
    ),
    Breakage(
        "accounting: a batch costs each time that it is fetched",
        "accounting/books.py",
        "        if once in counted:\n            counted.move_to_end(once)\n            return True\n",
        "",
        "accounting/test_account.py::Once::test_batch_results",
    ),
    Breakage(
        "accounting: a provider can say what a call cost",
        "web/context.py",
        "told = (f.OWN_PREFIX,) if strips else ()",
        "told = ()",
        "web/test_accounting.py::Whole::test_a_lie_about_tokens",
    ),
    Breakage(
        "accounting: the chunk with the usage reaches who did not ask",
        "web/delivery.py",
        "            removal = UsageRemoval()\n",
        "            pass\n",
        "web/test_accounting.py::Streams::test_usage_is_asked_for",
    ),
    Breakage(
        "accounting: an edited request keeps its length",
        "web/heads.py",
        'if length is not None and name.lower() == b"content-length"',
        "if False",
        "web/test_accounting.py::Streams::test_usage_is_asked_for",
    ),
    Breakage(
        "accounting: a model without a price costs nothing",
        "accounting/account.py",
        "cost.nano_usd, cost.nano_usd is None,",
        "cost.nano_usd or 0, cost.nano_usd is None,",
        "web/test_accounting.py::Whole::test_a_model_without_a_price",
    ),
    Breakage(
        "events: none for a request that had to wait",
        "wire/channel.py",
        "        requests = self.requests()\n",
        "        requests = self.requests()[:1]\n",
        "web/test_left_behind.py::InLine::test_unread",
    ),
    Breakage(
        "events: none for a broken head behind another request",
        "wire/request_reader.py",
        "            request.refusal = error\n",
        "            request.refusal = error\n            if self._current is not None:\n"
        "                self._current.close_after = True\n                return\n",
        "web/test_deadlines.py::Heads::test_behind_another web/test_deadlines.py::Malformed::test_behind_another",
    ),
    # -- secrets ---------------------------------------------------------------------------------------------
    Breakage(
        "secrets: the fields in a representation",
        "upstream/origin.py",
        'return f"<RawHeaders, {len(self.fields)} fields>"',
        'return f"<RawHeaders, {self.fields}>"',
        "canary/test_short_lived.py::Representations::test_no_key",
    ),
    Breakage(
        "secrets: the target in a representation",
        "wire/request.py",
        'return f"<Request {self.method!r} at {id(self):#x}>"',
        'return f"<Request {self.method!r} {self.uri!r}>"',
        "canary/test_no_key_leaks.py::NoKeyLeaks::test_representations",
    ),
    Breakage(
        "secrets: an id that is the key",
        "core/identity.py",
        'return hmac.digest(self._secret, key, "sha256").hex()',
        'return key.decode("latin-1")',
        "core/test_identity.py::Ids::test_is_hmac_sha256 core/test_identity.py::Ids::test_same_secret_same_id",
    ),
    Breakage(
        "secrets: a plain hash for an id",
        "core/identity.py",
        "hmac.digest(self._secret, key",
        'hmac.digest(b"secret", key',
        "core/test_identity.py::Ids::test_is_hmac_sha256 core/test_identity.py::Ids::test_same_secret_same_id",
    ),
    Breakage(
        "secrets: a key in a path is logged",
        "observe/access.py",
        'path = without_keys(target.partition(b"?")[0])',
        'path = target.partition(b"?")[0]',
        "observe/test_access.py::Path::test_no_query_no_key",
    ),
    Breakage(
        "secrets: a key in a log line",
        "observe/redact.py",
        "            return _KEY.sub(_masked, text)\n",
        "            return text\n",
        "observe/test_access.py::Path::test_no_query_no_key observe/test_log.py::Lines::test_keys_in_any_case",
    ),
)
"""All of them."""
