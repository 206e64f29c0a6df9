"""What a call costs.

The prices of the golden calls are those of the providers' own pages:
OpenAI https://developers.openai.com/api/docs/pricing, Anthropic https://platform.claude.com/docs/en/about-claude/pricing,
Gemini https://ai.google.dev/gemini-api/docs/pricing; each sum is worked out by hand beside it.
"""

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from llmproxy.core.pricing import Cost, Price, PriceBook, PriceList, Rates
from llmproxy.core.usage import NO_USAGE, ModelUsage, Usage

DOLLAR = 10**9


def dollars(**prices: float) -> Rates:
    """Rates in dollars for a million tokens. Only for values that a float has exactly to nine decimals."""
    return replace(Rates(), **{name: round(price * DOLLAR) for name, price in prices.items()})


HALF = Fraction(1, 2)
WEB_SEARCH = (("web_search", DOLLAR // 100),)

GPT_5_5 = Price(
    tiers=(
        (0, replace(dollars(input=5, cache_read=0.5, output=30), server_tools=WEB_SEARCH)),
        (272_000, replace(dollars(input=10, cache_read=1, output=45), server_tools=WEB_SEARCH)),
    ),
    service_tiers={
        "flex": HALF,
        "priority": Price(tiers=((0, dollars(input=12.5, cache_read=1.25, output=75)),)),
    },
    batch=HALF,
)
SONNET_4_5 = Price(
    tiers=(
        (
            0,
            replace(
                dollars(input=3, cache_read=0.3, cache_write_5m=3.75, cache_write_1h=6, output=15),
                server_tools=WEB_SEARCH,
            ),
        ),
    ),
    batch=HALF,
)
OPUS_5_5 = Price(
    tiers=((0, dollars(input=4, cache_read=0.2, cache_write_5m=5, cache_write_1h=8, output=20)),),
    speeds={"fast": Fraction(2)},
    inference_geos={"us": Fraction(11, 10)},
    batch=HALF,
)
GEMINI_2_5_PRO = Price(
    tiers=(
        (0, dollars(input=1.25, cache_read=0.125, input_audio=1.25, output=10)),
        (200_000, dollars(input=2.5, cache_read=0.25, input_audio=2.5, output=15)),
    ),
)
GPT_AUDIO = Price(tiers=((0, dollars(input=2.5, output=10, input_audio=32, output_audio=64)),))
IMAGE_1_5 = Price(tiers=((0, dollars(input=5, cache_read=1.25, output=10, input_image=8, output_image=32)),))
WHISPER = Price(tiers=((0, Rates(audio_second=100_000)),), batch=HALF)
SHIPPED = PriceList(
    origin="shipped",
    date="2026-11-24",
    prices={
        "openai": {"gpt-5.5": GPT_5_5, "gpt-audio": GPT_AUDIO, "gpt-image-1.5": IMAGE_1_5, "whisper-1": WHISPER},
        "anthropic": {"claude-sonnet-4-5": SONNET_4_5, "claude-opus-5-5": OPUS_5_5},
        "gemini": {"gemini-2.5-pro": GEMINI_2_5_PRO},
    },
    aliases={
        "openai": {"gpt-5.5-2026-04-23": "gpt-5.5"},
        "anthropic": {"claude-sonnet-4-5-20250929": "claude-sonnet-4-5"},
    },
)
BOOK = PriceBook([SHIPPED])


class CaseOfCosts(SynchronousTestCase):
    """Says what a usage must cost."""

    def assert_costs(self, nano_usd: int, usage: Usage, provider: str, model: str, **given: Any) -> None:
        cost = BOOK.cost(usage, provider, model, **given)
        self.assertEqual((cost.nano_usd, cost.known_nano_usd, cost.missing), (nano_usd, nano_usd, ()))
        self.assertEqual(cost.version, "shipped 2026-11-24")


class GoldenTests(CaseOfCosts):
    """Calls as they are billed."""

    def test_openai_bills_cached_input_apart(self) -> None:
        """A gpt-5.5 call with a warm cache costs what OpenAI's page says."""
        usage = Usage(input_tokens=1_000, cache_read_tokens=9_000, output_tokens=500, reasoning_tokens=200)
        # 1,000 x $5 + 9,000 x $0.50 + 500 x $30, for a million: 0.005 + 0.0045 + 0.015
        self.assert_costs(24_500_000, usage, "openai", "gpt-5.5-2026-04-23")

    def test_a_long_prompt_costs_more_for_all_its_tokens(self) -> None:
        """One token above 272,000 doubles the price of the whole input, and raises that of the output."""
        at = Usage(input_tokens=200_000, cache_read_tokens=72_000, output_tokens=1_000)
        # 200,000 x $5 + 72,000 x $0.50 + 1,000 x $30: 1 + 0.036 + 0.03
        self.assert_costs(1_066_000_000, at, "openai", "gpt-5.5")
        # 200,001 x $10 + 72,000 x $1 + 1,000 x $45: 2.00001 + 0.072 + 0.045
        self.assert_costs(2_117_010_000, replace(at, input_tokens=200_001), "openai", "gpt-5.5")
        # So it is where the call is not of text alone: a search is $0.01.
        searched = replace(at, server_tools=(("web_search", 1),))
        self.assert_costs(1_076_000_000, searched, "openai", "gpt-5.5")
        self.assert_costs(2_127_010_000, replace(searched, input_tokens=200_001), "openai", "gpt-5.5")

    def test_flex_and_batch_are_half_and_priority_is_its_own_price(self) -> None:
        """The tier that the answer names decides the price."""
        usage = Usage(input_tokens=1_000, output_tokens=1_000)  # standard: 0.005 + 0.03
        self.assert_costs(35_000_000, usage, "openai", "gpt-5.5", service_tier="default")
        self.assert_costs(17_500_000, usage, "openai", "gpt-5.5", service_tier="flex")
        self.assert_costs(17_500_000, usage, "openai", "gpt-5.5", service_tier="FLEX")
        self.assert_costs(87_500_000, usage, "openai", "gpt-5.5", service_tier="priority")  # 0.0125 + 0.075
        self.assert_costs(17_500_000, usage, "openai", "gpt-5.5", batch=True)
        self.assert_costs(17_500_000, usage, "openai", "gpt-5.5", service_tier="batch")

    def test_anthropic_bills_each_kind_of_caching_at_its_price(self) -> None:
        """Written for five minutes, written for an hour, read and fresh are four prices."""
        usage = Usage(
            input_tokens=1_000,
            cache_write_5m_tokens=2_000,
            cache_write_1h_tokens=3_000,
            cache_read_tokens=10_000,
            output_tokens=400,
            server_tools=(("web_search", 2),),
        )
        # 0.003 + 0.0075 + 0.018 + 0.003 + 0.006, and two searches at $10 for a thousand
        self.assert_costs(57_500_000, usage, "anthropic", "claude-sonnet-4-5-20250929")
        # In a batch the tokens are half, the searches are not: 0.01875 + 0.02
        self.assert_costs(38_750_000, usage, "anthropic", "claude-sonnet-4-5-20250929", batch=True)

    def test_speed_and_place_are_factors_on_each_other(self) -> None:
        """Fast is twice, in the US is a tenth more: both together are 2.2 times."""
        usage = Usage(input_tokens=1_000, output_tokens=1_000)  # 0.004 + 0.02
        self.assert_costs(24_000_000, usage, "anthropic", "claude-opus-5-5", speed="standard", inference_geo="global")
        self.assert_costs(48_000_000, usage, "anthropic", "claude-opus-5-5", speed="fast")
        self.assert_costs(48_000_000, usage, "anthropic", "claude-opus-5-5", speed="FAST", inference_geo="GLOBAL")
        self.assert_costs(52_800_000, usage, "anthropic", "claude-opus-5-5", speed="fast", inference_geo="us")

    def test_gemini_bills_thoughts_as_output(self) -> None:
        """The thoughts of a long Gemini prompt are paid at the long price of output."""
        usage = Usage(input_tokens=200_001, output_tokens=3_000, reasoning_tokens=2_500)
        # 200,001 x $2.50 + 3,000 x $15: 0.5000025 + 0.045
        self.assert_costs(545_002_500, usage, "gemini", "gemini-2.5-pro")
        # 200,000 x $1.25 + 3,000 x $10: 0.25 + 0.03
        self.assert_costs(280_000_000, replace(usage, input_tokens=200_000), "gemini", "gemini-2.5-pro")

    def test_sound_has_its_own_price(self) -> None:
        """What was spoken is taken out of the text, on both sides."""
        usage = Usage(input_tokens=1_000, input_audio_tokens=900, output_tokens=600, output_audio_tokens=500)
        # 100 x $2.50 + 900 x $32 + 100 x $10 + 500 x $64: 0.00025 + 0.0288 + 0.001 + 0.032
        self.assert_costs(62_050_000, usage, "openai", "gpt-audio")

    def test_images_have_their_own_price(self) -> None:
        """A picture that was made is paid as one, the words beside it as text."""
        usage = Usage(input_tokens=500, input_image_tokens=300, output_tokens=1_100, output_image_tokens=1_000)
        # 200 x $5 + 300 x $8 + 100 x $10 + 1,000 x $32: 0.001 + 0.0024 + 0.001 + 0.032
        self.assert_costs(36_400_000, usage, "openai", "gpt-image-1.5")
        # Looked at only: 200 x $5 + 300 x $8 + 100 x $10
        self.assert_costs(
            4_400_000, replace(usage, output_tokens=100, output_image_tokens=0), "openai", "gpt-image-1.5"
        )

    def test_a_recording_is_billed_by_its_length(self) -> None:
        """Whisper costs $0.006 a minute, and a batch of it half of that."""
        self.assert_costs(9_000_000, Usage(audio_ms=90_000), "openai", "whisper-1")
        self.assert_costs(4_500_000, Usage(audio_ms=90_000), "openai", "whisper-1", batch=True)

    def test_each_part_has_the_price_of_its_own_model(self) -> None:
        """A Sonnet call that asked Opus for advice costs both, each at its price, and at its own size."""
        advice = ModelUsage("claude-opus-5-5", Usage(input_tokens=2_000, output_tokens=100))
        usage = Usage(input_tokens=1_000, output_tokens=200, parts=(advice,))
        # Sonnet 0.003 + 0.003, Opus 0.008 + 0.002
        self.assert_costs(16_000_000, usage, "anthropic", "claude-sonnet-4-5")
        # Fast is Sonnet's, if it is anyone's: Opus is asked by the provider. 1.1 is both's, but Sonnet names no place.
        self.assert_costs(17_000_000, usage, "anthropic", "claude-sonnet-4-5", inference_geo="us")

    def test_the_speed_is_that_of_the_model_that_answers(self) -> None:
        """Fast Opus that asks Sonnet pays twice for itself, and once for Sonnet, which knows no speed."""
        advice = ModelUsage("claude-sonnet-4-5", Usage(input_tokens=1_000))
        usage = Usage(input_tokens=1_000, parts=(advice,))
        # Opus 2 x 0.004, Sonnet 0.003
        self.assert_costs(11_000_000, usage, "anthropic", "claude-opus-5-5", speed="fast")

    def test_a_cost_is_rounded_once(self) -> None:
        """Many small classes do not add up to a rounding error: half a nano-dollar goes up, and less goes away."""
        rates = Rates(input=300_000, cache_read=200_000, output=100_000)  # 0.3, 0.2 and 0.1 nano-dollars a token
        book = PriceBook([PriceList(origin="config", prices={"x": {"m": Price(tiers=((0, rates),))}})])
        self.assertEqual(book.cost(Usage(input_tokens=1, cache_read_tokens=1), "x", "m").nano_usd, 1)
        self.assertEqual(book.cost(Usage(input_tokens=1, output_tokens=1), "x", "m").nano_usd, 0)

    def test_a_part_that_is_larger_than_the_whole_counts_as_the_whole(self) -> None:
        """An answer that contradicts itself is not paid twice."""
        usage = Usage(output_tokens=100, output_audio_tokens=500)
        self.assert_costs(6_400_000, usage, "openai", "gpt-audio")  # 100 x $64


class UnpricedTests(SynchronousTestCase):
    """Nothing is free because its price is not known."""

    def test_an_unknown_model_has_no_cost_rather_than_a_cost_of_zero(self) -> None:
        """A new model is seen as unpriced from its first call on."""
        cost = BOOK.cost(Usage(input_tokens=1), "openai", "gpt-9")
        self.assertEqual(cost, Cost(None, "", None, 0, ("model",)))

    def test_names_that_resemble_a_model_are_not_that_model(self) -> None:
        """Neither the beginning of a name nor a letter less gets somebody else's price."""
        for name in ("gpt-5.5-mini", "gpt-5", "GPT-5.5", "gpt-5.5-2026-04-24", "openai/gpt-5.5", ""):
            self.assertIsNone(BOOK.find("openai", name), name)
        self.assertIsNone(BOOK.find("my-openai", "gpt-5.5"))
        self.assertIsNone(BOOK.find("openai", None))

    def test_what_used_nothing_cost_nothing(self) -> None:
        """An error of an unknown model is not counted among the unpriced calls."""
        self.assertEqual(BOOK.cost(NO_USAGE, "openai", "gpt-9").nano_usd, 0)
        self.assertEqual(BOOK.cost(NO_USAGE, "openai", "gpt-5.5", service_tier="scale").nano_usd, 0)

    def test_a_tier_without_a_price_is_not_taken_for_the_standard_one(self) -> None:
        """Priority that nobody has priced is unpriced, since it costs more than what is priced."""
        usage = Usage(input_tokens=1_000, output_tokens=1)
        for tier, speed, missing in (("scale", None, "service_tier scale"), (None, "fast", "speed fast")):
            cost = BOOK.cost(usage, "openai", "gpt-5.5", service_tier=tier, speed=speed)
            self.assertEqual((cost.nano_usd, cost.missing, cost.model), (None, (missing,), "gpt-5.5"))
            self.assertEqual(cost.known_nano_usd, 0)
            self.assertEqual(BOOK.lines(usage, "openai", "gpt-5.5", service_tier=tier, speed=speed)[0].price, None)
        cost = BOOK.cost(usage, "anthropic", "claude-opus-5-5", inference_geo="mars")
        self.assertEqual((cost.nano_usd, cost.missing), (None, ("inference_geo mars",)))

    def test_what_can_be_priced_is_told_beside_what_cannot(self) -> None:
        """A budget still counts the tokens of a call whose tool has no price."""
        usage = Usage(input_tokens=1_000, output_tokens=1_000, server_tools=(("code_execution", 1), ("web_search", 1)))
        cost = BOOK.cost(usage, "openai", "gpt-5.5")
        self.assertEqual((cost.nano_usd, cost.known_nano_usd, cost.missing), (None, 45_000_000, ("code_execution",)))

    def test_sound_without_a_price_is_not_paid_as_text(self) -> None:
        """Speech costs up to sixteen times what text does: no price of text stands in for it."""
        usage = Usage(input_tokens=10, input_audio_tokens=5, output_tokens=10, output_audio_tokens=5, audio_ms=1)
        cost = BOOK.cost(usage, "openai", "gpt-5.5")
        self.assertEqual((cost.nano_usd, cost.missing), (None, ("input_audio", "output_audio", "audio_second")))

    def test_a_part_on_an_unknown_model_leaves_the_whole_unpriced(self) -> None:
        """The sum is never a part of the bill that looks like all of it."""
        usage = Usage(input_tokens=1_000, parts=(ModelUsage("claude-next", Usage(output_tokens=5)),))
        cost = BOOK.cost(usage, "anthropic", "claude-sonnet-4-5")
        self.assertEqual((cost.nano_usd, cost.known_nano_usd, cost.missing), (None, 3_000_000, ("model",)))


class StandInTests(SynchronousTestCase):
    """Which price counts where none is stated."""

    def cost_of(self, usage: Usage, **prices: int) -> int | None:
        price = Price(tiers=((0, replace(Rates(), **{name: each * 10**6 for name, each in prices.items()})),))
        return PriceBook([PriceList(origin="config", prices={"x": {"m": price}})]).cost(usage, "x", "m").nano_usd

    def test_a_plain_price_of_input_and_output_prices_all_of_a_text_call(self) -> None:
        """Who configures two prices gets a cost, and it is not too low by what the cache or the thoughts took."""
        usage = Usage(
            input_tokens=7,
            input_image_tokens=2,
            cache_read_tokens=1,
            cache_write_5m_tokens=1,
            cache_write_1h_tokens=1,
            tool_use_tokens=1,
            output_tokens=10,
            reasoning_tokens=4,
        )
        self.assertEqual(self.cost_of(usage, input=2, output=3), 11 * 2 + 10 * 3)

    def test_an_hour_in_the_cache_costs_at_least_what_five_minutes_do(self) -> None:
        """With one price for writing to the cache, it is that of each writing."""
        self.assertEqual(self.cost_of(Usage(cache_write_1h_tokens=4), input=2, cache_write_5m=3, output=0), 12)

    def test_thoughts_with_a_price_of_their_own_are_taken_out_of_the_output(self) -> None:
        """They are paid once, at their price."""
        usage = Usage(output_tokens=10, reasoning_tokens=4)
        self.assertEqual(self.cost_of(usage, input=1, output=3, reasoning=5), 6 * 3 + 4 * 5)

    def test_a_batch_without_a_price_costs_what_its_calls_do(self) -> None:
        """That is the most it can cost, and never less."""
        usage = Usage(input_tokens=1_000)
        self.assertEqual(
            BOOK.cost(usage, "gemini", "gemini-2.5-pro", batch=True), BOOK.cost(usage, "gemini", "gemini-2.5-pro")
        )

    def test_a_batch_is_priced_as_small_calls(self) -> None:
        """The sum of a thousand small calls is no large call: it costs what they do, whatever its size."""
        usage = Usage(input_tokens=300_000, output_tokens=1_000)
        # By hand, in nano-dollars. GPT-5.5: half of 300,000 x 5,000 + 1,000 x 30,000. Gemini 2.5 Pro: 300,000 x 1,250 +
        # 1,000 x 10,000. (https://developers.openai.com/api/docs/pricing, https://ai.google.dev/gemini-api/docs/pricing)
        for provider, model, nano_usd in (
            ("openai", "gpt-5.5", 765_000_000),
            ("gemini", "gemini-2.5-pro", 385_000_000),
        ):
            self.assertEqual(BOOK.cost(usage, provider, model, batch=True).nano_usd, nano_usd)
            # What is not plain is added up class by class: it is the same.
            self.assertEqual(sum(line.nano_usd for line in BOOK.lines(usage, provider, model, batch=True)), nano_usd)
        # One call of that size is a large one: 300,000 x 10,000 + 1,000 x 45,000.
        self.assertEqual(BOOK.cost(usage, "openai", "gpt-5.5").nano_usd, 3_045_000_000)

    def test_output_without_a_price_is_unpriced(self) -> None:
        """A forgotten price of the output does not make it free."""
        self.assertIsNone(self.cost_of(Usage(input_tokens=1, output_tokens=1), input=2))
        self.assertEqual(self.cost_of(Usage(input_tokens=1), input=2), 2)


class LookUpTests(SynchronousTestCase):
    """Whose price counts."""

    def price(self, input_dollars: int) -> Price:
        return Price(tiers=((0, Rates(input=input_dollars * DOLLAR, output=0)),))

    def book(self) -> PriceBook:
        configured = PriceList(
            origin="config",
            prices={"openai": {"gpt-5.5": self.price(1), "fast": self.price(2)}, "mine": {"own": self.price(3)}},
            aliases={"openai": {"quick": "gpt-audio"}},
            same_as={"mine": "openai", "round": "robin", "robin": "round"},
        )
        return PriceBook([configured, SHIPPED])

    def nano(self, provider: str, answered: str | None, asked: str | None = None) -> tuple[int | None, str]:
        cost = self.book().cost(Usage(input_tokens=10**6), provider, answered, asked)
        return (None if cost.nano_usd is None else cost.nano_usd // DOLLAR), cost.version

    def test_a_configured_price_is_that_of_the_dated_names_too(self) -> None:
        """Who negotiated a price for gpt-5.5 pays it, though the answer says gpt-5.5-2026-04-23."""
        self.assertEqual(self.nano("openai", "gpt-5.5-2026-04-23", "gpt-5.5"), (1, "config"))
        self.assertEqual(self.nano("openai", "gpt-5.5-2026-04-23"), (1, "config"))

    def test_the_model_as_answered_goes_before_the_model_as_asked(self) -> None:
        """What was used is paid, not what was wished."""
        self.assertEqual(self.nano("openai", "gpt-5.5", "fast"), (1, "config"))
        self.assertEqual(self.nano("openai", "no-such", "fast"), (2, "config"))
        self.assertEqual(self.nano("openai", None, "fast"), (2, "config"))

    def test_a_configured_price_goes_before_a_shipped_one(self) -> None:
        """A name that somebody priced has that price, whatever model it is that answers to it."""
        self.assertEqual(self.nano("openai", "gpt-audio", "fast"), (2, "config"))

    def test_a_configured_alias_gets_a_shipped_price(self) -> None:
        """An alias is enough; the price need not be repeated."""
        cost = self.book().cost(Usage(output_tokens=10**6), "openai", "quick")
        self.assertEqual((cost.nano_usd, cost.version, cost.model), (10 * DOLLAR, "shipped 2026-11-24", "gpt-audio"))

    def test_a_provider_of_ones_own_is_priced_only_where_it_says_so(self) -> None:
        """A gateway that sells OpenAI's models is not taken for OpenAI, until it says `same_as: openai`."""
        self.assertEqual(self.nano("other", "gpt-5.5"), (None, ""))
        self.assertEqual(self.nano("mine", "gpt-5.5"), (1, "config"))
        self.assertEqual(self.nano("mine", "own"), (3, "config"))
        self.assertEqual(self.nano("round", "gpt-5.5"), (None, ""))

    def test_the_versions_of_all_prices_are_told(self) -> None:
        """A sum from two price lists names both."""
        usage = Usage(input_tokens=1, parts=(ModelUsage("gpt-audio", Usage(input_tokens=1)),))
        self.assertEqual(self.book().cost(usage, "openai", "gpt-5.5").version, "config + shipped 2026-11-24")

    def test_names_that_callers_invent_cost_no_memory(self) -> None:
        """A flood of made-up model names leaves the book as small as it was, and as right."""
        book = self.book()
        for nth in range(10_000):
            book.cost(Usage(input_tokens=1), "openai", None, f"made-up-{nth}")
        self.assertLess(len(book._quotes), 5_000)
        self.assertEqual(book.cost(Usage(input_tokens=10**6), "openai", "gpt-5.5").nano_usd, DOLLAR)


COUNTS = st.integers(0, 10**7)
USAGES = st.builds(
    Usage,
    input_tokens=COUNTS,
    cache_read_tokens=COUNTS,
    cache_write_5m_tokens=COUNTS,
    cache_write_1h_tokens=COUNTS,
    tool_use_tokens=COUNTS,
    output_tokens=COUNTS,
    reasoning_tokens=COUNTS,
    input_audio_tokens=st.just(0) | COUNTS,
    input_image_tokens=COUNTS,
    output_audio_tokens=st.just(0) | COUNTS,
    output_image_tokens=st.just(0) | COUNTS,
    server_tools=st.just(()) | st.just((("web_search", 3),)),
    audio_ms=st.just(0) | COUNTS,
)
AMOUNTS = st.integers(0, 10**12)
FULL_RATES = st.builds(
    Rates,
    **{name: AMOUNTS for name in Rates.__struct_fields__ if name != "server_tools"},
    server_tools=st.builds(lambda each: (("web_search", each),), AMOUNTS),
)
PLAIN_RATES = st.builds(Rates, input=AMOUNTS, output=AMOUNTS, cache_read=AMOUNTS | st.none())
FACTORS = st.fractions(0, 10, max_denominator=1000)

# What each class adds to, besides itself: a part of another class is counted in that one too.
WHOLE: Mapping[str, str] = {
    "reasoning_tokens": "output_tokens",
    "input_audio_tokens": "input_tokens",
    "input_image_tokens": "input_tokens",
    "output_audio_tokens": "output_tokens",
    "output_image_tokens": "output_tokens",
}


def book_of(rates: Rates, factor: Fraction, *tiers: tuple[int, Rates]) -> PriceBook:
    price = Price(tiers=((0, rates), *tiers), service_tiers={"some": factor})
    return PriceBook([PriceList(origin="config", prices={"x": {"m": price}})])


class PropertyTests(SynchronousTestCase):
    """What holds for every price and every usage."""

    @given(USAGES, FULL_RATES | PLAIN_RATES, PLAIN_RATES, FACTORS)
    def test_a_cost_is_the_exact_sum_of_its_lines_rounded_once(
        self, usage: Usage, rates: Rates, of_long: Rates, factor: Fraction
    ) -> None:
        """What is charged and what is explained are the same amount, to half a nano-dollar."""
        book = book_of(rates, factor, (10**6, of_long))
        cost = book.cost(usage, "x", "m", service_tier="some")
        exact = Fraction(0)
        for line in book.lines(usage, "x", "m", service_tier="some"):
            price = line.price or 0
            if line.unit == "token":
                exact += Fraction(line.count * price, 10**6) * factor
            elif line.unit == "ms":
                exact += Fraction(line.count * price, 1000) * factor
            else:
                exact += line.count * price
        self.assertEqual(cost.known_nano_usd, math.floor(exact + Fraction(1, 2)))
        self.assertEqual(cost.nano_usd is None, bool(cost.missing))

    @given(USAGES, FULL_RATES, FACTORS, st.sampled_from(sorted(set(Usage.__struct_fields__) - {"parts"})))
    def test_more_of_anything_never_costs_less(self, usage: Usage, rates: Rates, factor: Fraction, name: str) -> None:
        """A thousand more of any class is never a discount."""
        book = book_of(rates, factor)
        before = book.cost(usage, "x", "m", service_tier="some").nano_usd
        if name == "server_tools":
            more = replace(usage, server_tools=(("web_search", 1000),))
        else:
            grown = {name: getattr(usage, name) + 1000}
            if name in WHOLE:
                grown[WHOLE[name]] = getattr(usage, WHOLE[name]) + 1000
            more = replace(usage, **grown)
        after = book.cost(more, "x", "m", service_tier="some").nano_usd
        assert before is not None and after is not None
        self.assertLessEqual(before, after)

    @given(USAGES, USAGES, FULL_RATES)
    def test_a_part_on_the_same_price_adds_what_it_would_cost_alone(
        self, own: Usage, part: Usage, rates: Rates
    ) -> None:
        """Splitting a call into parts neither hides nor doubles a token."""
        book = book_of(rates, Fraction(1))
        both = book.cost(replace(own, parts=(ModelUsage("m", part),)), "x", "m").nano_usd
        apart = [book.cost(each, "x", "m").nano_usd for each in (own, part)]
        assert both is not None and apart[0] is not None and apart[1] is not None
        self.assertLessEqual(abs(both - apart[0] - apart[1]), 1)
