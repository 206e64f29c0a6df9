"""Price data: the file that is shipped, files of one's own, prices in the configuration, and LiteLLM's, imported.

What a price is, and what a call costs, is core/pricing.py. Imports core, msgspec and yaml only.
"""

from llmproxy.pricing.configured import from_original as from_original
from llmproxy.pricing.in_use import PricesError as PricesError
from llmproxy.pricing.in_use import lists_in_use as lists_in_use
from llmproxy.pricing.litellm import Imported as Imported
from llmproxy.pricing.litellm import import_litellm as import_litellm
from llmproxy.pricing.price_file import PriceFileError as PriceFileError
from llmproxy.pricing.price_file import load_file as load_file
from llmproxy.pricing.price_file import load_shipped as load_shipped
from llmproxy.pricing.price_file import staleness as staleness
from llmproxy.pricing.show import show as show
from llmproxy.pricing.written import written as written

__all__ = [
    "Imported",
    "PriceFileError",
    "PricesError",
    "from_original",
    "import_litellm",
    "lists_in_use",
    "load_file",
    "load_shipped",
    "show",
    "staleness",
    "written",
]
