"""A built-in simulator of OpenAI, Anthropic, Gemini and Groq: for the demo, for tests, and for client teams.

It speaks the providers' real shapes, at a real pace, with the faults that a caller asks for. The rule: it
is an honest upstream. It shares no shape with the proxy that is tested against it, so that a mistake in one
is not hidden by the same mistake in the other.
"""

from llmproxy.simulate.resource import SimulatorRoot

__all__ = ["SimulatorRoot"]
