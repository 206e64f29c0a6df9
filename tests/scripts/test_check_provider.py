"""`make test-openai` and its like, before anything is started."""

from twisted.trial.unittest import SynchronousTestCase

from tests.scripts.terminal import script


class WithoutKeyTests(SynchronousTestCase):
    """Most people have keys for some providers only."""

    def test_a_missing_key_is_no_failure(self) -> None:
        """Without a key the check says that it was skipped and what to set, and succeeds."""
        for provider, variable in (
            ("openai", "OPENAI_API_KEY"),
            ("anthropic", "ANTHROPIC_API_KEY"),
            ("gemini", "GEMINI_API_KEY"),
            ("groq", "GROQ_API_KEY"),
        ):
            told = script("check_provider.py", provider)
            self.assertEqual((told.status, told.err), (0, ""))
            self.assertIn(f"test-{provider}: skipped, {variable} is not set", told.out)

    def test_a_broken_key_is_refused_and_not_shown(self) -> None:
        """A key with a line break or an accent cannot be sent; the complaint does not quote it."""
        for broken in ("sk-can\nary", "sk-canary-é"):
            told = script("check_provider.py", "openai", OPENAI_API_KEY=broken)
            self.assertEqual(told.status, 1)
            self.assertEqual(told.out, "")
            self.assertEqual(told.err, "test-openai: OPENAI_API_KEY holds characters that no key has\n")
