"""Losses, softmaxes, centers and IDF are computed in float32 whatever the training precision."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def full(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def without_autocast(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Run `function`, whose first argument is a tensor, outside autocast, which would lower its matrix products."""

    @functools.wraps(function)
    def wrapped(first: Tensor, *args, **kwargs) -> Result:
        with torch.autocast(first.device.type, enabled=False):
            return function(first, *args, **kwargs)

    return wrapped
