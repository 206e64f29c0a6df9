"""The log file: what is in it, and what becomes of it when it is renamed, removed, or cannot be made."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from llmproxy.observe.file import LogFile


class Files(SynchronousTestCase):
    """One log file."""

    def setUp(self) -> None:
        """A folder for logs, in a folder of the test."""
        self.top = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.top)
        self.folder = self.top / "logs"
        self.folder.mkdir()
        self.path = self.folder / "log"
        self.told: list[str] = []
        self.owners: list[tuple[int, int]] = []
        self.patch(os, "fchown", lambda _, *owner: self.owners.append(owner))
        self.file = LogFile(str(self.path), 0o640, (65534, -1), self.told.append)

    def test_made(self) -> None:
        """Opening makes it, for the given owner; writing appends."""
        self.file.open()
        self.assertEqual(self.path.read_bytes(), b"")
        self.assertEqual(self.owners, [(65534, -1)])
        self.assertEqual(self.file.write(b"one\n"), 4)
        self.file.write(b"two\n")
        self.assertEqual(self.path.read_bytes(), b"one\ntwo\n")

    def test_there_already(self) -> None:
        """One that is there is appended to and stays whose it is: it may be somebody's link to anything."""
        target = self.top / "passwd"
        target.write_bytes(b"root\n")
        self.path.symlink_to(target)
        self.file.open()
        self.file.write(b"one\n")
        self.assertEqual((target.read_bytes(), self.owners), (b"root\none\n", []))

    def test_not_ours_to_give(self) -> None:
        """Without the right to give files away it is opened all the same."""

        def refuse(descriptor: int, user: int, group: int) -> None:
            raise PermissionError(1, "no")

        self.patch(os, "fchown", refuse)
        self.file.open()
        self.file.write(b"one\n")
        self.assertEqual(self.path.read_bytes(), b"one\n")

    def test_cannot_be_opened(self) -> None:
        """Whoever opens it hears that it cannot be."""
        self.folder.rmdir()
        self.assertRaises(FileNotFoundError, self.file.open)
        self.folder.mkdir()
        self.path.mkdir()
        self.assertRaises(IsADirectoryError, self.file.open)

    def test_renamed_or_removed(self) -> None:
        """What is written after the file was renamed or removed is in a new one of its name."""
        self.file.open()
        self.file.write(b"one\n")
        self.path.rename(self.folder / "old")
        self.file.write(b"two\n")
        self.assertEqual((self.path.read_bytes(), (self.folder / "old").read_bytes()), (b"two\n", b"one\n"))
        self.path.unlink()
        self.file.write(b"three\n")
        self.assertEqual(self.path.read_bytes(), b"three\n")
        self.assertEqual(self.told, [])

    def test_cannot_be_made_anew(self) -> None:
        """While no new one can be made the old one is written on, which is told once; as soon as one can, it is."""
        self.file.open()
        old = self.top / "old"
        for again in (1, 2):
            self.folder.rename(old)
            self.file.write(b"one\n")
            self.file.write(b"two\n")
            self.assertEqual((old / "log").read_bytes(), b"one\ntwo\n")
            self.assertEqual(len(self.told), again)
            self.assertIn(f"{self.path} cannot be opened: No such file or directory", self.told[-1])
            self.folder.mkdir()
            self.file.write(b"three\n")
            self.assertEqual((self.path.read_bytes(), len(self.told)), (b"three\n", again))
            self.path.write_bytes(b"")
            shutil.rmtree(old)

    def test_removed_and_cannot_be_made_anew(self) -> None:
        """A line that would be in a file that nobody can open any more is a failure, and so counts as lost."""
        self.file.open()
        shutil.rmtree(self.folder)
        self.assertRaises(FileNotFoundError, self.file.write, b"one\n")
        self.folder.mkdir()
        self.file.write(b"two\n")
        self.assertEqual(self.path.read_bytes(), b"two\n")

    def test_no_descriptor_is_lost(self) -> None:
        """A new file takes the place of the old one in the process too."""
        self.file.open()
        before = len(os.listdir("/proc/self/fd"))
        for number in range(5):
            self.path.rename(self.folder / str(number))
            self.file.write(b"one\n")
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)
