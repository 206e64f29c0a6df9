"""``${NAME}`` and ``${NAME:-default}`` in a string, as a shell means them; ``$$`` is one dollar.

The rule: a name that is not set and has no default is an error, never an empty string. What a name expands to
may be a secret, so no message shows it.
"""

import re
from collections.abc import Mapping
from typing import Final

_DOLLAR: Final = re.compile(
    r"""\$(?: (?P<dollar>\$)
            | \{ (?P<name>[A-Za-z_][A-Za-z0-9_]*) (?: (?P<has_default>:-) (?P<default>[^{}]*) )? \}
            | (?P<broken>\{) )""",
    re.VERBOSE,
)


class NotSetError(ValueError):
    """A name without a default is not set in the environment."""


def expand(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with every ``${...}`` replaced.

    With ``:-`` the default also takes the place of a name that is set but empty (POSIX shell, 2.6.2). A
    dollar in front of anything else stands for itself. Raises NotSetError, or ValueError for ``${`` that is
    none of the forms.
    """

    def replacement(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        if found["broken"]:
            raise ValueError("'${' must be ${NAME} or ${NAME:-default}; a dollar itself is written $$")
        value = environ.get(found["name"])
        if found["has_default"] and not value:
            return found["default"]
        if value is None:
            raise NotSetError(f"{found['name']} is not set in the environment, and has no default here")
        return value

    return _DOLLAR.sub(replacement, text)
