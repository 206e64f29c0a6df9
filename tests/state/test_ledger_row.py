"""What a row keeps of what others chose, and that its cost still follows from it."""

import json
import random
from collections.abc import Iterable
from unittest import mock

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.accounting.account import UNKNOWN_CHARGE
from llmproxy.commands.reprice import from_book
from llmproxy.core.pricing import Price, PriceBook, PriceList, Rates
from llmproxy.core.usage import ModelUsage, Usage
from llmproxy.state.ledger import row as row_module
from llmproxy.state.ledger.row import (
    ACCOUNTING_FAILED,
    JSON_CHARACTERS_MAX,
    TOO_LARGE,
    json_text,
    make_storable,
    storable_once,
)
from tests.state.ledger_cases import row

KEY = "sk-ant-api03-abcdefghijklmnop"
DOLLAR = 10**9


USAGES = st.builds(
    Usage,
    input_tokens=st.integers(0, 9),
    output_tokens=st.integers(0, 9),
    audio_ms=st.integers(0, 9),
    server_tools=st.sampled_from([(), (("web_search", 2),), (("file_search", 1), ("web_search", 3))]),
)
PARTS = st.recursive(
    st.builds(ModelUsage, st.sampled_from("abc"), USAGES),
    lambda parts: st.builds(
        lambda model, usage, inner: ModelUsage(model, replace(usage, parts=tuple(inner))),
        st.sampled_from("abc"),
        USAGES,
        st.lists(parts, max_size=3),
    ),
    max_leaves=8,
)


def counted(parts: Iterable[ModelUsage], model: str, name: str) -> int:
    """The sum of one count over all parts of a model, at whatever depth."""
    found = 0
    for part in parts:
        tools = dict(part.usage.server_tools)
        value = tools.get("web_search", 0) if name == "server_tools" else getattr(part.usage, name)
        found += (value if part.model == model else 0) + counted(part.usage.parts, model, name)
    return found


class OnceTests(SynchronousTestCase):
    """The name under which an answer is counted once."""

    def test_a_usual_name_is_kept_as_it_is(self) -> None:
        """What is polled every day is known again by its own name."""
        self.assertEqual(storable_once("openai resp_1"), "openai resp_1")

    def test_what_others_chose_is_brought_into_bounds(self) -> None:
        """Half a surrogate pair, a key and 100,000 characters in a name neither stop the ledger nor get into it."""
        for name, kept in (
            ("openai resp_\ud800", "openai resp_?"),
            (f"anthropic /v1/messages/batches/{KEY}/results", "anthropic /v1/messages/batches/sk-***/results"),
        ):
            one = row(1, once=name)
            make_storable(one)
            self.assertEqual(one.once, kept)
        one = row(1, once="openai " + "x" * 100_000)
        make_storable(one)
        assert one.once is not None
        self.assertRegex(one.once, r"\Aopenai #[0-9a-f]{32}\Z")

    def test_two_long_names_are_still_two(self) -> None:
        """A second batch is not free because its name begins as that of the first one."""
        one, other = (storable_once("openai " + "x" * 600 + end) for end in "ab")
        self.assertNotEqual(one, other)

    def test_a_key_at_the_bound(self) -> None:
        """Of a name that is too long no half of a key is kept, which would be masked otherwise the second time."""
        for length in range(440, 530):
            for key in (KEY, "key=" + KEY, "api_key=abc", "Bearer " + KEY):
                kept = storable_once(f"anthropic {'x' * length} {key} {'y' * 90}")
                self.assertEqual(storable_once(kept), kept)

    @given(st.text(st.characters(), max_size=40), st.integers(0, 600))
    def test_what_was_kept_is_kept_as_it_is(self, text: str, more: int) -> None:
        """The name in the ledger is the one that is compared after a restart."""
        kept = storable_once(text + "y" * more)
        self.assertLessEqual(len(kept), 512)
        self.assertEqual(storable_once(kept), kept)
        self.assertEqual(kept.encode().decode(), kept)


class PartsTests(SynchronousTestCase):
    """Many models in one call."""

    def book(self) -> PriceBook:
        rates = {
            "big": Price(tiers=((0, Rates(input=3 * DOLLAR, output=15 * DOLLAR, server_tools=(("web_search", 7),))),)),
            "small": Price(tiers=((0, Rates(input=DOLLAR, output=5 * DOLLAR, server_tools=(("web_search", 7),))),)),
        }
        return PriceBook([PriceList(origin="test", prices={"anthropic": rates})])

    def priced(self, parts: tuple[ModelUsage, ...]) -> tuple[int | None, str | None]:
        """What such a call costs when its row, as the ledger keeps it, is priced again."""
        one = row(1, provider="anthropic", model="big", input_tokens=100, output_tokens=10, parts=json_text(parts))
        make_storable(one)
        self.assertNotEqual(one.parts, TOO_LARGE)
        return from_book(self.book())(one)

    def test_a_call_with_sixty_parts_is_priced_again_as_it_was(self) -> None:
        """An agent's long call costs the same after `reprice`; it was nearly free."""
        parts = tuple(ModelUsage("small", Usage(input_tokens=1000, output_tokens=100)) for _ in range(60))
        # 100 x 3000 + 10 x 15000 nano-dollars, and 60 times 1000 x 1000 + 100 x 5000.
        self.assertEqual(self.priced(parts)[0], 450_000 + 60 * 1_500_000)

    def test_more_parts_than_fit_are_one_for_each_model(self) -> None:
        """Nothing of them is lost, tools and parts of parts included."""
        inner = ModelUsage("small", Usage(input_tokens=1000))
        usage = Usage(output_tokens=100, server_tools=(("web_search", 2),), audio_ms=0, parts=(inner,))
        parts = tuple(ModelUsage("small", usage) for _ in range(500))
        self.assertEqual(self.priced(parts)[0], 450_000 + 500 * (1_000_000 + 500_000 + 2 * 7))
        text = json_text(parts)
        assert text is not None
        self.assertEqual(
            json.loads(text),
            [
                {
                    "model": "small",
                    "usage": {"input_tokens": 500_000, "output_tokens": 50_000, "server_tools": [["web_search", 1000]]},
                }
            ],
        )

    @given(st.lists(PARTS, max_size=5))
    def test_whatever_is_merged_has_the_same_sums(self, parts: list[ModelUsage]) -> None:
        """No token and no use of a tool is lost or there twice, whatever the parts are."""
        with mock.patch.object(row_module, "JSON_CHARACTERS_MAX", 0):
            text = json_text(tuple(parts))
        merged = row(1, parts=text).usage().parts
        self.assertEqual(len({part.model for part in merged}), len(merged))
        for model in ("a", "b", "c"):
            alone = [part.usage for part in merged if part.model == model]
            for name in ("input_tokens", "output_tokens", "audio_ms"):
                self.assertEqual(sum(getattr(each, name) for each in alone), counted(parts, model, name))
            searches = sum(dict(each.server_tools).get("web_search", 0) for each in alone)
            self.assertEqual(searches, counted(parts, model, "server_tools"))

    def test_what_fits_is_kept_as_it_was(self) -> None:
        """The parts that come back are those that were given, zeros or not."""
        parts = (
            ModelUsage("small", Usage(input_tokens=1, parts=(ModelUsage("big", Usage(audio_ms=2)),))),
            ModelUsage("small", Usage()),
        )
        self.assertEqual(row(1, parts=json_text(parts)).usage().parts, parts)
        self.assertEqual(json_text((("web_search", 3),)), '[["web_search",3]]')
        self.assertIsNone(json_text(()))

    def test_parts_that_do_not_fit_leave_a_mark(self) -> None:
        """A row that lost its parts keeps its cost when history is priced again."""
        # Names that share nothing, so that neither way of writing them is short.
        chance = random.Random(1)
        parts = tuple(ModelUsage("".join(chance.choices("abcdef", k=250)), Usage(input_tokens=5)) for _ in range(64))
        one = row(1, parts=json_text(parts))
        assert one.parts is not None
        self.assertGreater(len(one.parts), JSON_CHARACTERS_MAX)
        make_storable(one)
        self.assertEqual((one.parts, one.tells_its_cost), (TOO_LARGE, False))
        self.assertRaises(msgspec.MsgspecError, one.usage)
        self.assertEqual(json.loads(TOO_LARGE), "too_large")
        tools = row(2, server_tools=json_text(tuple((f"tool-{n}", n) for n in range(2000))))
        make_storable(tools)
        self.assertEqual((tools.server_tools, tools.tells_its_cost), (TOO_LARGE, False))

    def test_a_row_whose_accounting_failed_does_not_tell_its_cost(self) -> None:
        """The word is the one that the account writes."""
        self.assertEqual(UNKNOWN_CHARGE.reason, ACCOUNTING_FAILED)
        self.assertFalse(row(1, reason=ACCOUNTING_FAILED).tells_its_cost)
        self.assertTrue(row(1, reason="stream_cut", parts="[]").tells_its_cost)


class CostTests(SynchronousTestCase):
    """A cost that is none."""

    def test_a_cost_has_bounds(self) -> None:
        """A wrong price of one call does not make the sums of a year overflow."""
        for cost, kept in ((10**30, 10**12), (10**12 + 1, 10**12), (10**12, 10**12), (-5, 0), (None, None)):
            one = row(1, cost_nano_usd=cost)
            make_storable(one)
            self.assertEqual(one.cost_nano_usd, kept)
