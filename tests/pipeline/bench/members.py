"""What contenders of the tests are made of: functions that other processes import by this module's name."""

import os
from collections.abc import Callable
from typing import Any

from transloom.pipeline.errors import UserError


def make_adder(start: int) -> tuple[Callable[[int], tuple[int, str | None]], int]:
    """Adds up what it is asked; says where it runs and with how many threads."""
    total = start

    def answer(request: int) -> Any:
        nonlocal total
        if request == 0:
            raise UserError("seed: is wrong")
        if request == -1:
            raise ZeroDivisionError("a bug")
        if request == -2:
            print("a last word", flush=True)
            os._exit(3)
        total += request
        return total, os.environ.get("OMP_NUM_THREADS")

    return answer, os.getpid()
