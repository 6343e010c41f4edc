"""Where step functions start: ``Sign``, or a comparison with a constant, cuts a float tensor at a threshold.

What the tensor can reach decides which regions the step function has: bounds of general floats (``ValueBounds``), the
very values where it takes no others than are known (``mixtures``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.constants import Array, apply_elementwise, dtype_of, op_name, static_shape
from bnn_compiler.recognition.residue import COMPARISONS
from bnn_compiler.recognition.step_function import Evaluate, Padding, StepFunction, cut

if TYPE_CHECKING:
    from bnn_compiler.recognition.value_sets import ValueSetAnalysis


def threshold_cut(call: Call, analysis: ValueSetAnalysis) -> StepFunction | None:
    """The step function of ``call`` if it is a ``Sign`` or a comparison of a float tensor with a constant."""
    name = op_name(call)
    if name == "relax.sign":
        if not dtype_of(call).startswith("float"):
            return None  # integers have no NaN, and no pack: three values, or what their set gives
        zero = np.zeros((), dtype_of(call.args[0]) or "float32")
        return _cut(analysis, call.args[0], zero, lambda distance: np.sign(distance[0]))
    if name not in COMPARISONS:
        return None
    for data, limit, flipped in ((call.args[0], call.args[1], False), (call.args[1], call.args[0], True)):
        threshold = analysis.constants.value(limit)
        if threshold is None or analysis.constants.value(data) is not None:
            continue
        if static_shape(data) != static_shape(call) or not np.issubdtype(threshold.dtype, np.floating):
            return None
        if threshold.size and np.all(threshold == threshold.flat[0]):
            threshold = np.asarray(threshold.flat[0], threshold.dtype)
        zero = np.zeros((), threshold.dtype)

        def compare(distance: Sequence[Array], zero: Array = zero, flipped: bool = flipped) -> Array:
            return apply_elementwise(name, [zero, distance[0]] if flipped else [distance[0], zero])

        return _cut(analysis, data, threshold, compare)
    return None


def _cut(analysis: ValueSetAnalysis, data: relax.Expr, threshold: Array, evaluate: Evaluate) -> StepFunction | None:
    if not isinstance(data, Var) or not np.all(np.isfinite(threshold)):
        return None
    base, padding = _through_padding(analysis, data, threshold)
    bounds = analysis.bounds.of(base)
    below, above = bounds.low < np.max(threshold), bounds.high > np.min(threshold)
    equal = bounds.low <= np.max(threshold) and bounds.high >= np.min(threshold)
    if equal and threshold.size == 1 and analysis.mixtures.of(base).can_equal(float(threshold.reshape(()))) is False:
        equal = False
    return cut(base, threshold, evaluate, reachable=(below, equal, above), padding=padding)


def _through_padding(analysis: ValueSetAnalysis, data: Var, threshold: Array) -> tuple[Var, Padding | None]:
    """A constant pad before the cut is a pad of the cut's value after it (exact, element by element)."""
    definition = analysis.definition(data)
    if not isinstance(definition, Call) or op_name(definition) != "relax.nn.pad" or threshold.size != 1:
        return data, None
    padding = spatial_padding(definition)
    inner = definition.args[0]
    return (inner, padding) if padding is not None and isinstance(inner, Var) else (data, None)


def spatial_padding(call: Call) -> Padding | None:
    """(top, left, bottom, right) of a constant pad of an NCHW tensor's rows and columns, else None."""
    widths = [int(width) for width in call.attrs.pad_width]
    shape = static_shape(call)
    if shape is None or len(shape) != 4 or len(widths) != 8 or any(widths[:4]) or min(widths) < 0:
        return None
    if getattr(call.attrs, "pad_mode", "constant") != "constant":
        return None
    return Padding((widths[4], widths[6], widths[5], widths[7]), float(call.attrs.pad_value))
