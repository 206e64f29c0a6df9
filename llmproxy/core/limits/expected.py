"""How much a model is expected to answer, before it does: what is reserved for an answer.

The rule: what the caller says it takes at most is what is reserved. Where it does not say, it is what answers of the
model have been, and somewhat more, so that most answers come to less; and nobody reserves without a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_WEIGHT: Final = 0.05
_SAMPLES_MIN: Final = 5
_DEVIATIONS: Final = 2.0
_MODELS_MAX: Final = 1_000


class _Answers:
    """Of one model: the mean of output tokens and of how far off it was, decayed: the last twenty weigh most."""

    __slots__ = ("deviation", "mean", "samples")

    def __init__(self) -> None:
        self.mean = self.deviation = 0.0
        self.samples = 0

    def learn(self, tokens: int) -> None:
        self.samples += 1
        weight = max(1.0 / self.samples, _WEIGHT)
        off = abs(tokens - self.mean) if self.samples > 1 else 0.0
        self.deviation += (off - self.deviation) * weight
        self.mean += (tokens - self.mean) * weight


class ExpectedOutput:
    """Learns from answers, by provider and model.

    :param default_tokens: of a model of which too little is known. max_tokens: more is never expected.
    """

    def __init__(self, default_tokens: int, max_tokens: int) -> None:
        self.default_tokens = default_tokens
        self.max_tokens = max_tokens
        self._models: OrderedDict[tuple[str, str], _Answers] = OrderedDict()

    def learn(self, provider: str, model: str, output_tokens: int) -> None:
        """An answer of a model was so long."""
        models, key = self._models, (provider, model)
        known = models.get(key)
        if known is None:
            known = models[key] = _Answers()
            if len(models) > _MODELS_MAX:
                models.popitem(last=False)
        else:
            models.move_to_end(key)
        known.learn(min(output_tokens, self.max_tokens))

    def tokens(self, provider: str, model: str, max_tokens: int | None) -> int:
        """What to reserve for an answer.

        :param max_tokens: what the caller takes at most; None if it does not say.
        """
        if max_tokens is not None:
            return min(max_tokens, self.max_tokens)
        known = self._models.get((provider, model))
        if known is None or known.samples < _SAMPLES_MIN:
            return min(self.default_tokens, self.max_tokens)
        return min(int(known.mean + _DEVIATIONS * known.deviation) + 1, self.max_tokens)
