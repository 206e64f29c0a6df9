"""What all accounts have in common: the prices, what was learned about estimates, what was counted already.

It outlives a reload: prices are replaced, and what was learned stays. What is kept is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from llmproxy.config.model import Estimation
from llmproxy.core.calibration import Calibration
from llmproxy.core.pricing import Cost, PriceBook
from llmproxy.core.usage import Reading, Usage

COUNTED_MAX: Final = 65_536
"""Background responses and batches that are remembered as counted."""

WARNED_MAX: Final = 1_000
"""Models without a price that are warned about, once each."""

_LEARN_ALL: Final = 256
_LEARN_EVERY: Final = 8


class Books:
    """See the module.

    :param warn: called with a sentence for the log.
    :param storable: what the ledger makes of the name of what is counted once, so that it is the same after a restart.
    :ivar bytes_per_token: of a body whose text was not looked at. max_sample_bytes: larger ones are not.
    :ivar unpriced: how many calls there was no price for.
    """

    def __init__(
        self,
        prices: PriceBook,
        estimation: Estimation,
        warn: Callable[[str], None],
        storable: Callable[[str], str] = str,
    ) -> None:
        self.calibration = Calibration()
        self.unpriced = 0
        self._warn = warn
        self.storable = storable
        self._warned: set[tuple[str, str]] = set()
        self._counted: OrderedDict[str, None] = OrderedDict()
        self._charged_for_now: OrderedDict[str, Usage] = OrderedDict()
        self._exact = 0
        self.replace(prices, estimation)

    def replace(self, prices: PriceBook, estimation: Estimation) -> None:
        """Go by these from now on."""
        self._prices = prices
        self._estimation = estimation
        self.bytes_per_token = estimation.bytes_per_token
        self.max_sample_bytes = estimation.max_sample_bytes
        self._warned.clear()

    def characters_per_token(self, provider: str) -> int:
        """What is configured for a provider; it holds where nothing has been learned."""
        estimation = self._estimation
        return estimation.provider_chars_per_token.get(provider, estimation.chars_per_token)

    def is_to_learn(self) -> bool:
        """Whether this exact answer is one to learn from: the first ones all are, then some."""
        self._exact += 1
        return self._exact <= _LEARN_ALL or not self._exact % _LEARN_EVERY

    def is_counted(self, once: str) -> bool:
        """Whether this has been counted before."""
        counted = self._counted
        if once in counted:
            counted.move_to_end(once)
            return True
        return False

    def count(self, once: str) -> None:
        """From now on this has been counted."""
        counted = self._counted
        counted[once] = None
        if len(counted) > COUNTED_MAX:
            counted.popitem(last=False)

    def charge_for_now(self, once: str, usage: Usage) -> None:
        """So much has been charged of what may be told in whole later, and has not been counted."""
        charged = self._charged_for_now
        charged[once] = usage
        if len(charged) > COUNTED_MAX:
            charged.popitem(last=False)

    def charged_for_now(self, once: str) -> Usage | None:
        """What has been charged so; None if nothing has. It is told once, to whoever counts it."""
        return self._charged_for_now.pop(once, None)

    def counted_before(self, once: Iterable[str]) -> None:
        """What had been counted before this process began, the oldest first."""
        for each in once:
            self.count(each)

    def cost(self, usage: Usage, provider: str, asked: str | None, reading: Reading) -> Cost:
        """What a usage costs. A model without a price is counted, and warned about once."""
        cost = self._prices.cost(
            usage,
            provider,
            reading.model,
            asked,
            reading.service_tier,
            reading.speed,
            reading.inference_geo,
            reading.batch,
        )
        if cost.nano_usd is None:
            self.unpriced += 1
            self._warn_unpriced(provider, reading.model or asked or "unknown", cost.missing)
        return cost

    def _warn_unpriced(self, provider: str, model: str, missing: tuple[str, ...]) -> None:
        about = (provider, model)
        if about in self._warned or len(self._warned) >= WARNED_MAX:
            return
        self._warned.add(about)
        what = "" if "model" in missing else f"{', '.join(missing)} on "
        self._warn(f"there is no price for {what}{model} of {provider}: it is counted, and its cost is not known")
