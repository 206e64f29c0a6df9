"""The log file: opened while it may be, written for as long as there is one, and made anew when it was renamed.

The rule: once there is a file, what happens to its name or its folder costs no line. A program that gave its privileges
away may be unable to open the file of that name again; it goes on with the one it has, and tries again with each
write.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable


class LogFile:
    """Appends to the file at a path.

    :param path: an absolute one: a daemon leaves its folder.
    :param mode: who may do what with a file that is made.
    :param owner: user and group who get the file if `open` makes it; -1 for either leaves that as it is.
    :param tell: is told, once each time, that the file of that name cannot be opened and where lines go meanwhile.
    """

    def __init__(self, path: str, mode: int, owner: tuple[int, int], tell: Callable[[str], None]) -> None:
        self._path = path
        self._mode = mode
        self._owner = owner
        self._tell = tell
        self._descriptor = -1
        self._told = False

    def open(self) -> None:
        """Open the file, or make it.

        :raises OSError: when that cannot be.
        """
        self._descriptor, is_new = self._opened()
        if is_new:
            with contextlib.suppress(OSError):  # without root nobody is given anything, and twistd will say so
                os.fchown(self._descriptor, *self._owner)

    def _opened(self) -> tuple[int, bool]:
        """A descriptor of the file, and whether the file was made."""
        append = os.O_WRONLY | os.O_APPEND
        try:
            # In a folder that others may write, a link of theirs is not made a file of theirs: O_EXCL follows none.
            return os.open(self._path, append | os.O_CREAT | os.O_EXCL, self._mode), True
        except FileExistsError:
            return os.open(self._path, append), False

    def write(self, data: bytes) -> int:
        """Append as much as the disk takes; returns how many bytes that was.

        :raises OSError: when it takes nothing, or when nobody could ever read it.
        """
        if not self._is_still_there():
            self._open_anew()
        return os.write(self._descriptor, data)

    def _is_still_there(self) -> bool:
        try:
            there, ours = os.stat(self._path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

    def _open_anew(self) -> None:
        try:
            descriptor, _ = self._opened()
        except OSError as error:
            if self._descriptor < 0 or not os.fstat(self._descriptor).st_nlink:
                raise  # the file that we have was removed: what is written there is gone, and is to count as lost
            if not self._told:
                self._told = True
                self._tell(
                    f"{self._path} cannot be opened: {error.strerror}; the log goes on in the file it had before"
                )
            return
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._told = descriptor, False
