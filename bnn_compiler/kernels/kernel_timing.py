"""Kernels of binary layers outside a network: built together, called on buffers of their own, timed in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
import tvm_ffi

from bnn_compiler.code_generation import code_generation
from bnn_compiler.constants import Array
from bnn_compiler.kernels.derived_constant import Constant, value_of
from bnn_compiler.kernels.layer_kernels import Kernel, LayerKernels

Call = Callable[[], object]


def stage_calls(
    layers: Sequence[LayerKernels], input_shape: tuple[int, ...], target: tvm.target.Target
) -> list[list[Call]]:
    """Build the kernels of ``layers``, which read the same float activation; one call per stage of each.

    Every stage reads what the one before it wrote, so the calls of a layer in order compute it. The activation is
    random normal numbers. Stages with the same code and constants are built once. The machine must be able to run
    ``target``.
    """
    stages: list[tuple[Kernel, Any]] = []
    numbers: dict[tuple[Any, ...], int] = {}
    activation = _aligned(np.random.default_rng(0).standard_normal(input_shape).astype(np.float32))
    plans: list[list[int]] = []
    for layer in layers:
        before, plan = -1, []
        for stage in layer.stages:
            key = (before, tvm_ffi.structural_hash(stage.function), *map(_content, stage.constants))
            if key not in numbers:
                numbers[key] = len(stages)
                stages.append((stage, before))
            before = numbers[key]
            plan.append(before)
        plans.append(plan)
    functions = {
        f"kernel_{i}": stage.function.with_attr("global_symbol", f"kernel_{i}") for i, (stage, _) in enumerate(stages)
    }
    with target, code_generation():
        library = tvm.compile(tvm.IRModule(functions), target=target)
    outputs = [_aligned(np.zeros(stage.shape, stage.dtype)) for stage, _ in stages]
    calls = []
    for i, (stage, before) in enumerate(stages):
        source = activation if before < 0 else outputs[before]
        calls.append(
            _call(
                library[f"kernel_{i}"],
                [source, *(_aligned(value_of(constant)) for constant in stage.constants), outputs[i]],
            )
        )
    return [[calls[number] for number in plan] for plan in plans]


def _content(constant: Constant) -> tuple[Any, ...]:
    array = value_of(constant)
    return str(array.dtype), array.shape, array.tobytes()


def _call(function: Any, arguments: Sequence[Any]) -> Call:
    return lambda: function(*arguments)


def _aligned(array: Array) -> Any:
    return tvm_ffi.from_dlpack(tvm.runtime.tensor(np.ascontiguousarray(array)))
