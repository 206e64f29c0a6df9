"""What is learned about estimates: how much text a token is, for each model, from answers that came with a count.

The rule: a count from the provider corrects the next estimate of the same model, slowly, and no single answer can spoil
it. What is kept is bounded: the models that were least recently learned about go first. An average is made of decayed
sums of characters and tokens, not of ratios, so that many short answers do not outweigh a long one.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, TypeAlias

from llmproxy.core.estimation import RequestText, estimated_input_tokens, overhead_tokens

SAMPLES_MIN: Final = 3
"""From so many samples on an average is trusted more than the configured default."""

CHARACTERS_PER_TOKEN_MIN: Final = 0.2
CHARACTERS_PER_TOKEN_MAX: Final = 50.0
"""A sample outside of these is taken as if it were at the border: hidden reasoning below, a wrong counter above."""

_KEPT: Final = 0.98  # of what was known, per sample: an average over about the last fifty
_ERROR_WEIGHT: Final = 0.05
_ERROR_MAX: Final = 10.0

Exported: TypeAlias = dict[str, dict[str, dict[str, float | int]]]


class _Average:
    """Tokens per unit (a character, an event) of one model, from decayed sums.

    error: the decayed mean of |predicted - counted| / counted, each predicted before it was learned.
    """

    __slots__ = ("error", "samples", "tokens", "units")

    def __init__(self) -> None:
        self.units = self.tokens = self.error = 0.0
        self.samples = 0

    def learn(self, units: int, tokens: float) -> None:
        samples = self.samples
        if samples:
            miss = abs(units * self.tokens / self.units / tokens - 1.0)
            if miss > _ERROR_MAX:
                miss = _ERROR_MAX
            # The first few count alike; after them the weight is constant.
            self.error += (miss - self.error) * (1.0 / samples if samples < 20 else _ERROR_WEIGHT)
            self.units = self.units * _KEPT + units
            self.tokens = self.tokens * _KEPT + tokens
        else:
            self.units, self.tokens = units, tokens
        self.samples = samples + 1


class _Model:
    """What is known of one model of one provider."""

    __slots__ = ("input", "output", "output_events")

    def __init__(self) -> None:
        self.input = _Average()
        self.output = _Average()
        self.output_events = _Average()


class Calibration:
    """Learns, and estimates by what it learned.

    :param max_models: of so many (provider, model) something is kept.
    """

    __slots__ = ("_max_models", "_models")

    def __init__(self, max_models: int = 1_000) -> None:
        self._max_models = max_models
        self._models: OrderedDict[tuple[str, str], _Model] = OrderedDict()

    def learn_input(self, provider: str, model: str, text: RequestText, total_input_tokens: int) -> None:
        """A request's text, and what the provider counted: the whole input, read from a cache or not.

        A request with an attachment or with ids of tokens teaches nothing: its text is not what the tokens are for. Nor
        does one whose text could not be taken out of its body.
        """
        characters = text.characters
        if characters <= 0 or total_input_tokens <= 0 or text.attachments or text.token_ids or text.unread:
            return
        tokens = _bounded(characters, total_input_tokens - overhead_tokens(text))
        self._model(provider, model).input.learn(characters, tokens)

    def learn_output(self, provider: str, model: str, characters: int, events: int, output_tokens: int) -> None:
        """The text of an answer, how many events brought it, and what the provider counted.

        An answer in one event tells nothing of events: it may be one that was no stream.
        """
        if characters <= 0 or output_tokens <= 0:
            return
        known = self._model(provider, model)
        tokens = _bounded(characters, output_tokens)
        known.output.learn(characters, tokens)
        if events > 1:
            known.output_events.learn(events, tokens)

    def estimate_input(self, provider: str, model: str, text: RequestText, default_characters_per_token: float) -> int:
        """About how many tokens of input a request is; at least 1 unless its body was empty."""
        known = self._models.get((provider, model))
        if known is None or known.input.samples < SAMPLES_MIN:
            return estimated_input_tokens(text, default_characters_per_token)
        return estimated_input_tokens(text, known.input.units / known.input.tokens)

    def estimate_output(
        self, provider: str, model: str, characters: int, events: int, default_characters_per_token: float
    ) -> int:
        """About how many tokens a text is that came in so many events; at least 1 unless both are 0.

        Characters or events: whichever has been nearer for this model. Without enough samples, characters by default.
        """
        if characters <= 0 and events <= 0:
            return 0
        known = self._models.get((provider, model))
        by_characters = by_events = None
        if known is not None:
            if known.output.samples >= SAMPLES_MIN:
                by_characters = known.output
            if events > 1 and known.output_events.samples >= SAMPLES_MIN:
                by_events = known.output_events
        if by_events is not None and (
            characters <= 0 or by_characters is None or by_events.error < by_characters.error
        ):
            tokens = events * by_events.tokens / by_events.units
        elif by_characters is not None:
            tokens = characters * by_characters.tokens / by_characters.units
        else:
            tokens = characters / max(default_characters_per_token, CHARACTERS_PER_TOKEN_MIN)
        return max(1, round(tokens))

    def export(self) -> Exported:
        """What is known, for people and for metrics: by provider, by model, the figures that there are samples for.

        input_characters_per_token, output_characters_per_token, output_tokens_per_event; to each of them
        input_error, output_error, output_event_error (1.0 is 100 %) and input_samples, output_samples,
        output_event_samples.
        """
        exported: Exported = {}
        for (provider, model), known in self._models.items():
            figures: dict[str, float | int] = {}
            for name, average in (("input", known.input), ("output", known.output)):
                if average.samples:
                    figures[f"{name}_characters_per_token"] = round(average.units / average.tokens, 4)
                    figures[f"{name}_error"] = round(average.error, 4)
                    figures[f"{name}_samples"] = average.samples
            events = known.output_events
            if events.samples:
                figures["output_tokens_per_event"] = round(events.tokens / events.units, 4)
                figures["output_event_error"] = round(events.error, 4)
                figures["output_event_samples"] = events.samples
            exported.setdefault(provider, {})[model] = figures
        return exported

    def _model(self, provider: str, model: str) -> _Model:
        models = self._models
        key = (provider, model)
        known = models.get(key)
        if known is None:
            known = models[key] = _Model()
            if len(models) > self._max_models:
                models.popitem(last=False)
        else:
            models.move_to_end(key)
        return known


def _bounded(characters: int, tokens: int) -> float:
    least = characters / CHARACTERS_PER_TOKEN_MAX
    if tokens < least:
        return least
    most = characters / CHARACTERS_PER_TOKEN_MIN
    return most if tokens > most else tokens
