"""The prices that a configuration leads to, in the order in which they go before each other."""

from __future__ import annotations

from llmproxy.core.pricing import PriceList
from llmproxy.pricing.price_file import PriceFileError, load_file, load_shipped


class PricesError(Exception):
    """The price file that is configured cannot be used. The text is what to tell the operator."""


def lists_in_use(configured: PriceList, file: str | None) -> list[PriceList]:
    """The configured prices, those of the operator's own file, those that are shipped. Raises PricesError."""
    lists = [configured]
    if file is not None:
        try:
            lists.append(load_file(file))
        except PriceFileError as error:
            raise PricesError(f"pricing.file: {error}") from None
        except OSError as error:
            raise PricesError(f"pricing.file {file} cannot be read: {error.strerror or error}") from None
    return [*lists, load_shipped()]
