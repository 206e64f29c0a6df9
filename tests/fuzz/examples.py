"""How many examples a run tries: few in the suite, many in `make fuzz`."""

import os

_TIMES = int(os.environ.get("FUZZ_TIMES", "1"))


def examples(number: int) -> int:
    """`number`, times what the run asks for."""
    return number * _TIMES
