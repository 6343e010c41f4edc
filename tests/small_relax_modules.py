"""Hand-made Relax modules, small enough to compile in a moment, with their NumPy meaning."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import tvm
from tvm import IRModule, relax, s_tir, te

FloatArray = npt.NDArray[np.float32]

FEATURES = 1024
WEIGHT: FloatArray = np.random.default_rng(0).standard_normal((FEATURES, 10)).astype(np.float32)


def applied(module: IRModule, *passes: object) -> IRModule:
    """``module`` after ``passes``, in order."""
    return tvm.transform.Sequential(list(passes))(module)


def many_results() -> IRModule:
    """x -> (y + 1, y, x, y + 1) with y = reshape(relu(x) @ WEIGHT), and its matrix product alone as ``layer_0``.

    Every way in which a result can come about: a kernel's own buffer, a reshaped one, an input, a repetition.
    """
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((1, FEATURES), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            rectified = builder.emit(relax.op.nn.relu(x))
            product = builder.emit(relax.op.matmul(rectified, relax.const(WEIGHT)))
            flat = builder.emit(relax.op.reshape(product, (10,)))
            plus = builder.emit_output(relax.op.add(flat, relax.const(1.0)))
            results = builder.emit_output(relax.Tuple([plus, builder.emit_output(flat), x, plus]))
        builder.emit_func_output(results)
    value = relax.Var("value", relax.TensorType((1, FEATURES), "float32"))
    with builder.function("layer_0", [value]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.matmul(value, relax.const(WEIGHT)))
        builder.emit_func_output(result)
    return builder.get()


def many_results_reference(x: FloatArray) -> list[FloatArray]:
    """The results of ``many_results``'s ``main``."""
    y = (np.maximum(x, 0) @ WEIGHT).reshape(10)
    return [y + 1, y, x, y + 1]


def elementwise(shape: tuple[int, ...] = (1, FEATURES)) -> IRModule:
    """(x, y) -> x + y, exactly rounded, so results can be compared bit for bit."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(shape, "float32"))
    y = relax.Var("y", relax.TensorType(shape, "float32"))
    with builder.function("main", [x, y]):
        with builder.dataflow():
            result = builder.emit_output(relax.op.add(x, y))
        builder.emit_func_output(result)
    return builder.get()


def parallel() -> IRModule:
    """x -> 2x for float32[64, 1024], by a parallel loop."""

    source = te.placeholder((64, 1024), "float32", name="source")
    function = te.create_prim_func([source, te.compute((64, 1024), lambda i, j: source[i, j] * 2.0, name="double")])
    schedule = s_tir.Schedule(function.with_attr("tirx.noalias", True).without_attr("global_symbol"))
    schedule.parallel(schedule.get_loops(schedule.get_sblock("double"))[0])
    builder = relax.BlockBuilder()
    kernel = builder.add_func(schedule.mod["main"], "double")
    x = relax.Var("x", relax.TensorType((64, 1024), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(relax.call_tir(kernel, [x], out_ty=relax.TensorType((64, 1024), "float32")))
        builder.emit_func_output(result)
    return builder.get()
