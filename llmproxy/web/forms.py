"""Which requests are forms that name a model: audio to be transcribed, images to be edited.

Others (files to be stored) name none, and go on at once as they arrive.
"""

from __future__ import annotations

import re
from typing import Final

from llmproxy.core.fields import Index

_CALLS: Final = re.compile(rb"/(?:audio/(?:transcriptions|translations)|images/(?:edits|variations))(?:\?|\Z)")


def is_form(index: Index) -> bool:
    """Whether a request with these fields has a form for its body."""
    content_type = index.get(b"content-type")
    return content_type is not None and content_type[:19].lower() == b"multipart/form-data"


def names_model_in_form(index: Index, rest: bytes) -> bool:
    """Whether a request with these fields, for this target, is a form with a model among its fields."""
    return is_form(index) and _CALLS.search(rest) is not None
