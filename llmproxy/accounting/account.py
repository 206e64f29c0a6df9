"""The account of one call: what was asked, what was read of the answer, and what it comes to.

The rules: the account reads a copy, and nothing of it can hold up or change a byte. Whatever becomes of the call, its
charge is made once, and a call that was answered is never free because something could not be read: then it is charged
at an estimate, which is marked as one.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from llmproxy.accounting.decoding import CannotDecode, Decoder, decoder_for
from llmproxy.core.end import EndReason
from llmproxy.core.estimation import RequestText, body_estimate, estimated_input_tokens, request_text
from llmproxy.core.fields import Index
from llmproxy.core.reading.catalog import PLAIN_SHAPES, SHAPES
from llmproxy.core.reading.reader import UsageReader, read_whole
from llmproxy.core.reading.values import subtract
from llmproxy.core.usage import NO_USAGE, Counters, Reading, Source, Usage

if TYPE_CHECKING:
    from llmproxy.accounting.books import Books

KEPT_BODY_BYTES: Final = 16 * 1024
"""A request's body up to here is kept until it is known whether its text has to be looked at; the text of a larger one
is measured at once."""

READ_WHOLE_BYTES: Final = 256 * 1024
"""An answer up to here is read in one go; a larger one piece by piece."""

FORM_BYTES_PER_TOKEN: Final = 16
"""Of a form: nearly all of it is a file, as in core/estimation.py."""

LEARN_CHARACTERS_MIN: Final = 200
"""Of the text of a request, for its tokens to tell how many characters make one."""

EVENT_BYTES_PER_TOKEN: Final = 64
"""Of a stream that cannot be read: most of an event is not text."""

# What a model is not asked by, or is not billed, where no answer has told so: the caller gave up, or it cannot be read.
_FREE: Final = re.compile(
    rb"/(?:count_tokens|input_tokens|moderations|files|uploads?|batches|fine_tuning|assistants|threads|vector_stores"
    rb"|containers|evals|conversations|cachedContents|fileSearchStores|cancel)(?:/|\Z)"
    rb"|/models(?:/[^/:]+)?\Z|:countTokens\Z"
)

BATCH_RESULTS: Final = "batch_results"
"""What a reading of the results of a batch has for its `once`: they do not say which batch they are of."""

_NOTHING: Final = Reading()

# The caller waited in vain, and the provider had begun to work. Nobody can know how far it came.
_GIVEN_UP: Final = frozenset((EndReason.CLIENT_GONE, EndReason.FIRST_BYTE_TIMEOUT, EndReason.DRAIN))


_WITHOUT_ANSWER: Final = ("not_answered", "error_status")


class Charge(msgspec.Struct, frozen=True, gc=False):
    """What one call comes to.

    usage, source: what was used, and how that is known. reason: why, where it is not exact.
    cost_nano_usd: in nano-dollars; None where nothing is charged, or where there is no price.
    unpriced: there is something to charge, and no price for it. price_version: the prices that were taken.
    once: the name under which it is counted once, where the same answer may be asked for again.
    """

    usage: Usage = NO_USAGE
    source: Source = Source.NONE
    reason: str | None = None
    reading: Reading = _NOTHING
    cost_nano_usd: int | None = None
    unpriced: bool = False
    price_version: str | None = None
    once: str | None = None


UNKNOWN_CHARGE: Final = Charge(source=Source.ESTIMATED, reason="accounting_failed", unpriced=True)
"""Where working it out failed with an error of ours: it is no proof that nothing was used."""

NO_CALL: Final = Charge(reason="no_call")
"""Of a request that went to no provider."""


class Account(msgspec.Struct, gc=False):
    """One call of a provider. (A Struct is made in a third of the time that slots take. Nothing in it leads back to it,
    so the collector need not look at it.)

    books: what all accounts have in common. provider: the provider's name.
    post: whether the method is POST: others ask for what there is already.
    model: the model that is asked for; None if the request names none.
    body: the request's body, if all of it is here and it has no coding of its own, until its text was measured.
    length_bytes: its length as announced; None if that was not.
    looked: whether the body was looked at to its end, so that a model that was not found is not there.
    target: where the request goes; of the results of a batch it tells which they are.
    form: whether the body is a form with a file in it.
    waiting: the pieces of an answer that is held until all are here, and is read then; whoever holds it sets this.
    copy: where a relay adds each piece of the answer's body, for ``look``; None where nothing more is read.
    The others are this module's own.
    """

    books: Books
    provider: str
    post: bool
    model: str | None
    body: bytes | None
    length_bytes: int | None
    looked: bool
    target: bytes
    form: bool = False
    delivered_bytes: int = 0
    whole: bool = False
    content_type: bytes | None = None
    text: RequestText | None = None
    decoder: Decoder | None = None
    reader: UsageReader | None = None
    copy: bytearray | None = None
    reading: Reading | None = None
    reason: str | None = "not_answered"  # why nothing is read
    waiting: list[bytes] | None = None
    gathered: list[bytes] | None = None  # of a JSON answer, which is read at its end if it is small
    gathered_bytes: int = 0
    made: Charge | None = None

    def __repr__(self) -> str:
        """The provider only: what was asked and answered is nobody's business."""
        return f"<Account at {self.provider}>"

    # -- the answer ------------------------------------------------------------------------------------------

    def answered(self, status: int, index: Index) -> bool:
        """The head of the answer is here. Returns whether its body is to be read."""
        if not 200 <= status < 300:
            self.reason = "error_status"
            return False
        self.reason = None
        self.content_type = index.get(b"content-type")
        coding = index.get(b"content-encoding")
        if coding is not None:
            try:
                self.decoder = decoder_for(coding)
            except CannotDecode as error:
                self.reason = error.reason
                return False
        return True

    def _bytes_per_token(self) -> int:
        """For an answer that cannot be read: 0 where it is no text, but sound, an image, a file, or is not there."""
        if self.reason in _WITHOUT_ANSWER:
            return 0
        content_type = (self.content_type or b"text/plain").lower()
        if content_type.startswith(b"text/event-stream"):
            return EVENT_BYTES_PER_TOKEN
        return self.books.bytes_per_token if content_type.startswith((b"text/", b"application/json")) else 0

    def read_whole(self, body: bytes) -> None:
        """The whole body came at once."""
        if self.decoder is None and len(body) <= READ_WHOLE_BYTES:
            self.reading = read_whole(body, SHAPES, PLAIN_SHAPES)
            return
        self.take(body)
        self.ended(True)

    def begin_copy(self) -> bytearray:
        """The answer comes in pieces, and they are added here; see ``copy``."""
        self.copy = copy = bytearray()
        return copy

    @property
    def enough(self) -> int:
        """So many bytes in ``copy`` are worth a look."""
        reader = self.reader
        return 1 if reader is None or self.copy is not reader.gathered else reader.batch_bytes

    def look(self) -> None:
        """Look at what is in ``copy``, which may be another one afterwards, as may ``enough``."""
        reader = self.reader
        if reader is not None and self.copy is reader.gathered:
            reader.take_apart()
        else:
            self._take_copy()

    def _take_copy(self) -> None:
        copy, reader = self.copy, self.reader
        if copy and (reader is None or copy is not reader.gathered):
            data = bytes(copy)
            copy.clear()
            self.take(data)

    def take(self, data: bytes) -> None:
        """A piece of the body, as it came."""
        reader = self.reader
        if reader is None:
            if self.reason is not None or self._gathers(data):
                return
            reader = self._new_reader()
        decoder = self.decoder
        if decoder is None:
            reader.feed(data)
            return
        try:
            for piece in decoder.decode(data):
                reader.feed(piece)
        except CannotDecode as error:
            self._give_up(error.reason)

    def _gathers(self, data: bytes) -> bool:
        """Whether this piece is of a JSON answer that is read in one go: that costs a third of reading it in pieces."""
        gathered = self.gathered
        if gathered is None:
            if self.decoder is not None or data[:1] != b"{" or len(data) > READ_WHOLE_BYTES:
                return False
            self.gathered, self.gathered_bytes = [data], len(data)
            return True
        self.gathered_bytes += len(data)
        if self.gathered_bytes > READ_WHOLE_BYTES:
            return False
        gathered.append(data)
        return True

    def _new_reader(self) -> UsageReader:
        """A reader that has read what was gathered."""
        reader = self.reader = UsageReader(SHAPES)
        if self.decoder is None:
            self.copy = reader.gathered  # each piece is copied once
        self.measure_request()
        gathered, self.gathered = self.gathered, None
        for data in gathered or ():
            reader.feed(data)
        return reader

    def ended(self, whole: bool) -> None:
        """The body is over. ``whole``: it came to its proper end."""
        self._take_copy()
        gathered = self.gathered
        if gathered is not None:
            if whole:
                self.gathered = self.copy = None
                self.read_whole(gathered[0] if len(gathered) == 1 else b"".join(gathered))
                return
            self._new_reader()
        self.copy = None
        reader, decoder = self.reader, self.decoder
        if reader is None:
            return
        if decoder is not None:
            try:
                for piece in decoder.finish():
                    reader.feed(piece)
            except CannotDecode as error:
                if whole:
                    self._give_up(error.reason)
                    return
        self.reader = self.decoder = None
        self.reading = reader.finish(whole)

    def broke(self) -> None:
        """Reading failed with an error of ours: the bytes go on, and what is charged is an estimate."""
        reader, self.reader, self.decoder, self.copy = self.reader, None, None, None
        self.reason = "reading_failed"
        self.gathered = None
        if reader is not None and self.reading is None:
            try:
                self.reading = reader.finish(False)  # what was seen until then counts
            except Exception:  # noqa: BLE001, S110 - it is broken, as was said
                pass

    def _give_up(self, reason: str) -> None:
        reader = self.reader
        if reader is not None:
            self.reading = reader.finish(False)
        self.reader = self.decoder = self.copy = None
        self.reason = reason

    # -- what it comes to ------------------------------------------------------------------------------------

    def output_so_far(self) -> int:
        """About how many tokens of output have come."""
        reading = self.reader.snapshot() if self.reader is not None else self.reading
        if reading is None:
            return 0
        return max(reading.usage.total_output, self._output_estimate(reading.text_characters, reading.text_events))

    @property
    def may_be_read(self) -> bool:
        """Whether an answer is still to come, or is being read."""
        return self.reason in (None, "not_answered")

    def charge(self, end_reason: EndReason, sent: bool, delivered_bytes: int) -> Charge:
        """What the call comes to; made at the first call, and never again.

        :param sent: whether the request had gone to the provider.
        :param delivered_bytes: how much of an answer its caller got.
        """
        charge = self.made
        if charge is None:
            if self.reading is None and self.waiting:
                for data in self.waiting:
                    self.take(data)
            if self.copy is not None:
                self._take_copy()
                self.copy = None
            if self.reader is not None or self.gathered is not None:
                self.ended(False)
            self.delivered_bytes, self.whole = delivered_bytes, end_reason is EndReason.OK
            charge = self.made = self._made(end_reason, sent)
            self.body = self.text = self.reading = self.waiting = None
        return charge

    def _made(self, end_reason: EndReason, sent: bool) -> Charge:
        reading = self.reading
        if reading is None:
            return self._without_reading(end_reason, sent)
        counters = reading.counters
        if counters is Counters.FINAL:
            return self._exact(reading)
        if counters is Counters.FREE or not self._is_call(reading):
            return Charge(NO_USAGE, Source.NONE, reading.reason or "no_call", reading)
        if counters is Counters.ABSENT and reading.error is not None and not reading.text_characters:
            return Charge(NO_USAGE, Source.NONE, "error", reading)
        once = None if reading.once is None else self._once_name(reading.once)
        if once is not None and self.books.is_counted(once):
            return Charge(NO_USAGE, Source.NONE, "already_counted", reading)
        if counters is Counters.RUNNING:
            charge = self._partial(reading)
        else:
            charge = self._estimated(reading, self.reason or reading.reason)
        if once is not None:  # it may go on without its caller, and be fetched when it has ended
            self.books.charge_for_now(once, charge.usage)
        return charge

    def _is_call(self, reading: Reading) -> bool:
        """Whether a model was asked. A request that could not be looked at is taken for one that asked."""
        if not self.post or _FREE.search(self.target.partition(b"?")[0]):
            return False
        if self.model is not None or reading.text_characters or reading.counters is Counters.RUNNING:
            return True
        return not self.looked and self.length_bytes != 0

    def _exact(self, reading: Reading) -> Charge:
        once = None
        if reading.once is not None:
            once = self._once_name(reading.once)
            if self.books.is_counted(once):
                return Charge(NO_USAGE, Source.NONE, "already_counted", reading)
        elif not self.post:
            # What is only asked for once more was counted when it was made.
            return Charge(NO_USAGE, Source.NONE, "retrieved", reading)
        if self.books.is_to_learn():
            self._learn(reading)
        if once is None:
            return self._priced(reading.usage, Source.EXACT, None, reading)
        charged, usage, reason = self.books.charged_for_now(once), reading.usage, None
        if charged is not None:
            usage, reason = subtract(usage, [charged]), "rest"
        charge = self._priced(usage, Source.EXACT, reason, reading, once)
        self.books.count(once)
        return charge

    def _once_name(self, once: str) -> str:
        """The name under which an answer is counted once: the provider, and its id or else where it is found."""
        if once == BATCH_RESULTS:
            once = self.target.partition(b"?")[0].decode("latin-1")
        return self.books.storable(f"{self.provider} {once}")

    def _partial(self, reading: Reading) -> Charge:
        usage = reading.usage
        if reading.text_characters_after:
            more = self._output_estimate(reading.text_characters_after, reading.text_events_after)
            usage = msgspec.structs.replace(usage, output_tokens=usage.output_tokens + more)
        if not usage.total_input:
            usage = msgspec.structs.replace(usage, input_tokens=self._input_estimate())
        return self._priced(usage, Source.PARTIAL, reading.reason, reading)

    def _estimated(self, reading: Reading, reason: str | None) -> Charge:
        output = 0
        if reading.text_characters:
            output = self._output_estimate(reading.text_characters, reading.text_events)
        elif not reading.shape and (self.reason is not None or self.whole) and (size := self._bytes_per_token()):
            # Nobody knows what it said. (One that was cut before it said what it is has not said much.)
            output = -(-self.delivered_bytes // size)
        usage = Usage(input_tokens=self._input_estimate(), output_tokens=output)
        return self._priced(usage, Source.ESTIMATED, reason, reading)

    def _without_reading(self, end_reason: EndReason, sent: bool) -> Charge:
        """No answer, one with an error status, one without a body, or one that could not be read."""
        reason = self.reason
        if reason == "error_status" or not self._is_call(_NOTHING):
            return Charge(reason=reason or "no_call")
        if reason == "not_answered":
            if not sent or end_reason not in _GIVEN_UP:
                return Charge(reason=reason)
            return self._estimated(_NOTHING, "given_up")
        return self._estimated(_NOTHING, reason or "no_body")

    def _priced(
        self, usage: Usage, source: Source, reason: str | None, reading: Reading, once: str | None = None
    ) -> Charge:
        cost = self.books.cost(usage, self.provider, self.model, reading)
        return Charge(usage, source, reason, reading, cost.nano_usd, cost.nano_usd is None, cost.version, once)

    # -- estimates -------------------------------------------------------------------------------------------

    def measure_request(self) -> None:
        """Look at the text of the request, and let go of its body."""
        body, self.body = self.body, None
        if body is not None and len(body) <= self.books.max_sample_bytes:
            self.text = request_text(body)

    def _input_estimate(self) -> int:
        self.measure_request()
        books = self.books
        if self.text is None:
            if self.length_bytes == 0:
                return 0
            return body_estimate(self.length_bytes, FORM_BYTES_PER_TOKEN if self.form else books.bytes_per_token)
        default = books.characters_per_token(self.provider)
        learned = books.calibration.estimate_input(self.provider, self.model or "", self.text, default)
        # Whatever was learned: no text has a quarter of the tokens, or four times as many, that are usual.
        usual = estimated_input_tokens(self.text, default)
        return min(max(learned, usual // 4), usual * 4)

    def _output_estimate(self, characters: int, events: int) -> int:
        books = self.books
        default = books.characters_per_token(self.provider)
        return books.calibration.estimate_output(self.provider, self.model or "", characters, events, default)

    def _learn(self, reading: Reading) -> None:
        usage = reading.usage
        if usage.parts or reading.batch:
            return
        self.measure_request()
        model = self.model or ""
        calibration = self.books.calibration
        # Short prompts tell more of what a message costs beside its text, and what is no text tells nothing of it.
        plain = not (usage.tool_use_tokens or usage.input_audio_tokens or usage.input_image_tokens)
        if self.text is not None and plain and self.text.characters >= LEARN_CHARACTERS_MIN:
            calibration.learn_input(self.provider, model, self.text, usage.total_input)
        written = usage.output_tokens - usage.output_audio_tokens - usage.output_image_tokens
        if reading.text_characters and written > 0:
            calibration.learn_output(self.provider, model, reading.text_characters, reading.text_events, written)
