"""Keeps torch's compiler out of the training processes. No training here compiles, and importing the compiler
(torch._dynamo, with sympy and inductor) takes each worker as long as importing torch itself."""

import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def keep_uncompiled(optimizer: type[torch.optim.Optimizer]) -> None:
    """Marks the class' methods as needing no protection from the compiler.

    torch wraps each of these methods in a function that imports the compiler at its first call, to exempt the method
    from compilation. The function checks this attribute first.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        method = inspect.unwrap(getattr(optimizer, name))
        if not hasattr(method, "__dynamo_disable"):
            setattr(method, "__dynamo_disable", method)


def plain_step(optimizer: torch.optim.Adam) -> None:
    """Adam's step without torch's wrapper, with gradients switched off. The wrapper imports the compiler at each step,
    to tell it that gradients are off."""
    with torch.no_grad():
        inspect.unwrap(torch.optim.Adam.step)(optimizer)


@contextmanager
def plain_import() -> Iterator[None]:
    """Within the block torch's compiler decorators do nothing, and mlflow can't be imported. For imports of libraries
    that decorate functions for the compiler, or that import mlflow where it is installed."""
    places: list[tuple[Any, str]] = [(torch, "compile"), (torch, "_disable_dynamo"), (torch.compiler, "disable")]
    usual = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, _same)
    hide = "mlflow" not in sys.modules
    if hide:
        sys.modules["mlflow"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        if hide:
            del sys.modules["mlflow"]
        for (module, name), function in zip(places, usual, strict=True):
            setattr(module, name, function)


def _same(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """A decorator, with or without arguments, that changes nothing."""
    return _same if function is None else function
