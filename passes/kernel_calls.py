"""Calls of finished kernels in Relax functions, with constants and repeated calls made once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tvm import relax

from bnn_compiler.composites import apply_moves
from bnn_compiler.constants import Array
from bnn_compiler.kernels.derived_constant import Constant, DerivedConstant, value_of
from bnn_compiler.kernels.layer_kernels import Kernel
from bnn_compiler.layers import Move

from .lift_derived_constants import DERIVES_ATTR


class _Constants:
    """One Relax constant per distinct array, so that main and the layer functions share it."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...], bytes], relax.Expr] = {}

    def of(self, array: Array) -> relax.Expr:
        key = (str(array.dtype), array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = relax.const(np.ascontiguousarray(array))
        return self._known[key]


class KernelCalls:
    """Emits calls into one module; with ``derive`` a derived constant becomes a call of the kernel that makes it."""

    def __init__(self, *, derive: bool) -> None:
        self._derive = derive
        self._constants = _Constants()
        self._shared: dict[tuple[Any, ...], relax.Expr] = {}

    def moved(self, builder: relax.BlockBuilder, x: relax.Expr, moves: Sequence[Move]) -> relax.Expr:
        """``apply_moves``, once for each tensor and sequence of moves."""
        key = (x, *moves)
        if key not in self._shared:
            self._shared[key] = apply_moves(builder, x, moves)
        return self._shared[key]

    def call(
        self, builder: relax.BlockBuilder, kernel: Kernel, data: relax.Expr, *, share: bool, name: str = ""
    ) -> relax.Expr:
        """Call ``kernel``; with ``share`` the same kernel is called once on the same data and constants.

        ``name`` is the result's; the builder finds one where it is empty.
        """
        function = builder.add_func(kernel.function, kernel.name)  # the same variable for a function that is there
        constants = [self.constant(builder, constant) for constant in kernel.constants]
        key = (data, function, *constants)
        if share and key in self._shared:
            return self._shared[key]
        call = relax.call_tir(function, [data, *constants], relax.TensorType(kernel.shape, kernel.dtype))
        result = builder.emit(call, name)
        if share:
            self._shared[key] = result
        return result

    def constant(self, builder: relax.BlockBuilder, constant: Constant) -> relax.Expr:
        """The constant as an expression, stored once; a derived one as ``derive`` says."""
        if not isinstance(constant, DerivedConstant) or not self._derive:
            return self._constants.of(value_of(constant))
        kernel = constant.function.with_attr(DERIVES_ATTR, True)
        function = builder.add_func(kernel, str(kernel.attrs["bnnc.kernel"]))
        stored = [self._constants.of(array) for array in constant.stored]
        result = relax.TensorType(constant.value.shape, str(constant.value.dtype))
        return builder.emit(relax.call_tir(function, stored, result))
