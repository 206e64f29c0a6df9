"""The secret that is made once and kept."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.state.identity_secret import IdentitySecretError, load_or_create


class LoadOrCreate(SynchronousTestCase):
    """One file."""

    def setUp(self) -> None:
        """A folder that does not exist yet."""
        self.folder = os.path.join(self.mktemp(), "state")
        self.path = os.path.join(self.folder, "identity.secret")

    def _write(self, content: bytes, mode: int) -> None:
        os.makedirs(self.folder)
        with open(self.path, "wb") as file:
            file.write(content)
        os.chmod(self.path, mode)

    def _complaint(self) -> str:
        return str(self.assertRaises(IdentitySecretError, load_or_create, self.path))

    def test_same_after_restart(self) -> None:
        """The first start makes a secret, every later one finds the same."""
        first = load_or_create(self.path)
        self.assertRegex(first.decode(), r"\A[0-9a-f]{64}\Z")
        self.assertEqual(load_or_create(self.path), first)
        self.assertNotEqual(load_or_create(self.path + "2"), first)

    def test_for_its_owner_only(self) -> None:
        """Nobody else can read the file, or list the folder that was made for it; no draft is left."""
        load_or_create(self.path)
        self.assertEqual(stat.S_IMODE(os.stat(self.path).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(self.folder).st_mode), 0o700)
        self.assertEqual(os.listdir(self.folder), ["identity.secret"])

    def test_others_can_read(self) -> None:
        """A secret that others could have read is refused, with the remedy."""
        for mode in (0o640, 0o604, 0o660):
            with self.subTest(mode=oct(mode)):
                self.folder = self.mktemp()
                self.path = os.path.join(self.folder, "identity.secret")
                self._write(b"ab" * 32, mode)
                self.assertIn("chmod 600", self._complaint())

    def test_something_else_in_it(self) -> None:
        """A file that was cut or edited is no secret; what it holds is not shown."""
        for content in (b"", b"ab" * 31, b"hunter2" * 10, b"ab" * 33):
            with self.subTest(content=content):
                self.folder = self.mktemp()
                self.path = os.path.join(self.folder, "identity.secret")
                self._write(content, 0o600)
                complaint = self._complaint()
                self.assertIn("64 hexadecimal characters", complaint)
                self.assertNotIn("hunter2", complaint)

    def test_written_by_hand(self) -> None:
        """A secret copied from another machine, with or without a line end, gives that machine's ids."""
        self._write(b"ab" * 32, 0o600)
        self.assertEqual(load_or_create(self.path), b"ab" * 32)

    def test_not_a_file(self) -> None:
        """A folder or a pipe in its place is one clear sentence, and no hang."""
        os.makedirs(self.path)
        self.assertIn("not a regular file", self._complaint())
        os.rmdir(self.path)
        os.mkfifo(self.path, 0o600)
        self.assertIn("not a regular file", self._complaint())

    def test_no_folder_possible(self) -> None:
        """Where nothing can be written, the sentence says so and names the way out."""
        self._write(b"", 0o600)
        self.path = os.path.join(self.path, "identity.secret")
        complaint = self._complaint()
        self.assertIn("not a directory", complaint)
        self.assertIn("LLM_PROXY_IDENTITY_SECRET", complaint)
        self.assertNotIn("\n", complaint)

    def test_cannot_be_made(self) -> None:
        """A full or read-only disk leaves no draft behind, and no half-written secret."""

        def full(source: str, target: str) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "link", full)
        self.assertIn("cannot be made (no space left on device)", self._complaint())
        self.assertEqual(os.listdir(self.folder), [])

    def test_many_at_once(self) -> None:
        """Processes that start at the same time agree on one secret."""
        for _ in range(20):
            path = os.path.join(self.mktemp(), "identity.secret")
            with ThreadPoolExecutor(8) as pool:
                self.assertEqual(len(set(pool.map(load_or_create, [path] * 8))), 1)

    def test_loser_takes_the_winners(self) -> None:
        """If another process writes its secret between our look and our own, that one is used."""
        real_link = os.link

        def link(source: str, target: str) -> None:
            with open(target, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(b"cd" * 32 + b"\n")
            real_link(source, target)

        self.patch(os, "link", link)
        self.assertEqual(load_or_create(self.path), b"cd" * 32)
        self.assertEqual(os.listdir(self.folder), ["identity.secret"])
