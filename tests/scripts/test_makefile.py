"""What `make` offers."""

from twisted.trial.unittest import SynchronousTestCase

from tests.scripts.terminal import KEYS, run

# The targets that the project promises, as its README lists them.
PROMISED = (
    "help install build run dev demo check fmt vet lint clean fuzz soak test test-all test-openai test-anthropic"
    " test-gemini test-groq test-health env-check version"
).split()


class MakeTests(SynchronousTestCase):
    """The targets, without what they start."""

    def test_help_names_every_target_with_a_line(self) -> None:
        """`make help`, and `make` alone, say what there is and what it does."""
        told = run("make", "help")
        self.assertEqual((told.status, told.err), (0, ""))
        lines = dict(line.split(maxsplit=1) for line in told.out.splitlines())
        self.assertEqual(sorted(lines), sorted(PROMISED))
        self.assertEqual(run("make").out, told.out)

    def test_every_target_has_something_to_do(self) -> None:
        """No promised target is empty: each would run at least one command."""
        for target in PROMISED:
            planned = run("make", "--dry-run", "--always-make", target)
            self.assertEqual((target, planned.status, planned.err), (target, 0, ""))
            self.assertNotIn("Nothing to be done", planned.out)

    def test_env_check_tells_found_from_missing_and_shows_no_key(self) -> None:
        """Four lines, one for each key, and no character of a value."""
        told = run("make", "env-check", OPENAI_API_KEY="sk-canary-4711", GROQ_API_KEY="")
        self.assertEqual(
            told.out.split("\n"),
            [*(f"  {name}: {'found' if name == 'OPENAI_API_KEY' else 'missing'}" for name in KEYS), ""],
        )
        self.assertNotIn("canary", told.out + told.err)
