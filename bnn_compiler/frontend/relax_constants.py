"""Relax constants and their values."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import tvm
from tvm import relax


def constant(array: npt.NDArray[Any]) -> Any:
    """A Relax constant of the array's own type; ``relax.const`` alone makes 64-bit numbers 32-bit ones."""
    return relax.const(array, str(array.dtype))


def constant_array(expression: Any) -> npt.NDArray[Any] | None:
    """The value of a constant input; ``None`` for absent and for computed inputs."""
    if isinstance(expression, tvm.ir.GenericConst):
        array: npt.NDArray[Any] = expression.value.numpy()
        return array
    return None
