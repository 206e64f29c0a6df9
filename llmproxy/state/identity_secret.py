"""The secret under which credential ids are made, kept in a file: the ids outlive a restart.

The rule: the file appears whole or not at all, only its owner can read it, and of two processes that start at
once both end up with the same secret. Used where neither the configuration nor the environment gives one.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from typing import Final

_SECRET_BYTES: Final = 32
_CONTENT = re.compile(rb"[0-9a-f]{64}")
_READ_BYTES_MAX: Final = 1024


class IdentitySecretError(Exception):
    """The secret can be neither read nor made. The text is one sentence for the operator."""


def load_or_create(path: str) -> bytes:
    """The secret in the file at `path`; if there is none, a new random one, kept there.

    Returns the file's 64 hexadecimal characters as they stand (32 random bytes), so that copying them into
    LLM_PROXY_IDENTITY_SECRET on another machine gives the same ids there.

    Raises IdentitySecretError if the file cannot be read or written, others than its owner can read it, or it
    holds something else.
    """
    try:
        return _load(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _complaint("read", path, error) from error
    try:
        _create(path)
        return _load(path)
    except OSError as error:
        raise _complaint("made", path, error) from error


def _load(path: str) -> bytes:
    # O_NONBLOCK: a named pipe at this path must not hang the start.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise IdentitySecretError(f"The identity secret {path} is not a regular file.")
        if status.st_mode & 0o077:
            raise IdentitySecretError(
                f"The identity secret {path} can be read by others than its owner; run chmod 600 on it."
            )
        content = os.read(descriptor, _READ_BYTES_MAX).strip()
    finally:
        os.close(descriptor)
    if _CONTENT.fullmatch(content) is None:
        raise IdentitySecretError(
            f"The identity secret {path} does not hold 64 hexadecimal characters; remove it to have a new "
            "one made, which changes all credential ids."
        )
    return content


def _create(path: str) -> None:
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, mode=0o700, exist_ok=True)
    draft = os.path.join(folder, f".{os.path.basename(path)}.{os.getpid()}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.write(descriptor, secrets.token_hex(_SECRET_BYTES).encode("ascii") + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        try:
            # link, not rename: it fails if the other process was first, and then that one's secret is the
            # secret.
            os.link(draft, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(draft)


def _complaint(done: str, path: str, error: OSError) -> IdentitySecretError:
    reason = (error.strerror or type(error).__name__).lower()
    return IdentitySecretError(
        f"The identity secret {path} cannot be {done} ({reason}); set state_dir to a "
        "folder of the proxy's own, or give the secret in LLM_PROXY_IDENTITY_SECRET."
    )
