"""Match one convolution or matrix product against the definition of a binary layer.

Conditions for y = product(a, w), checked in this order; the first that fails is the reason in the report:

1. w is constant and binary, ±α per output channel (``binary_weights``).
2. a draws from a finite alphabet: two values, {−a, 0, +a} (``value_sets``, ``binarizers``), or codes of up to four bits
   (``code_binarizers``).
3. The form is supported: conv1d or conv2d in NCHW/OIHW, or a matrix product with a matrix; static shapes; float32.
4. Padding stays in the alphabet (``padding_not_in_alphabet``): zeros are exact for bipolar, {0, a} and ternary
   activations, and for codes where 0 or half a step beside 0 is one.

A match is the layer in the canonical form of ``composites``, starting at the tensor that is compared.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tvm import relax
from tvm.ir import Call, Var

from bnn_compiler.binarizers import Binarizer, plan_binarizer
from bnn_compiler.binary_weights import BinaryWeights, NotBinary, analyse_weights
from bnn_compiler.code_binarizers import CodePlanner
from bnn_compiler.code_lattice import fit_codes
from bnn_compiler.constants import Array, dtype_of, op_name, static_shape
from bnn_compiler.element_selection import Functions
from bnn_compiler.layers import BinarySpec, LayerNames, Move
from bnn_compiler.missing_condition import missing_condition
from bnn_compiler.monotone_chains import MonotoneChains
from bnn_compiler.options import SignZero
from bnn_compiler.report import Status
from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.value_sets import ValueSetAnalysis


@dataclass(frozen=True, eq=False)
class Match:
    """A binary layer: the tensor to compare is ``binarizer.base``, the rest is ``spec``."""

    binarizer: Binarizer
    spec: BinarySpec


class LayerMatcher:
    """Applies the conditions of the module's docstring to the products of one function."""

    def __init__(
        self,
        function: relax.Function,
        names: Mapping[str, Any],
        sign_zero: SignZero,
        functions: Functions | None = None,
    ) -> None:
        self.bindings = {b.var: b.value for block in function.body.blocks for b in block.bindings}
        self.analysis = ValueSetAnalysis(self.bindings, functions)
        self.uses = _count_uses(function)
        self.readers = _sole_readers(function)
        self._names = names
        self.has_names = bool(names)
        self._sign_zero = sign_zero
        chains = MonotoneChains(self.bindings, self.analysis.constants)
        self._codes = CodePlanner(
            self.bindings, chains, self.uses, lambda v: not self.has_names or self.tensor_name(v) is not None
        )

    def names_of(self, variable: Var, call: Call) -> LayerNames:
        """ONNX names where the front end left them, else Relax's."""
        entry = self._names.get(variable.name, {})
        return LayerNames(
            entry.get("node", variable.name),
            entry.get("op", op_name(call).removeprefix("relax.")),
            None,
            entry.get("output"),
        )

    def tensor_name(self, variable: relax.Expr) -> str | None:
        """The ONNX tensor that a variable stands for."""
        entry = self._names.get(variable.name) if isinstance(variable, Var) else None
        return entry.get("output") if entry else None

    def describe(self, variable: Var) -> str:
        """A tensor for people: its ONNX name and operator, or Relax's."""
        entry = self._names.get(variable.name, {})
        name = entry.get("output", variable.name)
        return f"{name!r} ({entry['op']})" if "op" in entry else f"{name!r}"

    def match(self, call: Call) -> tuple[Match | NotBinary, Status]:
        """The layer in canonical form or the reason, and what is proven of it whether or not a kernel takes it."""
        name = op_name(call)
        left_weight = name == "relax.matmul" and self.analysis.constants.value(call.args[0]) is not None
        data, kernel = (call.args[1], call.args[0]) if left_weight else (call.args[0], call.args[1])
        weights = self.analysis.constants.value(kernel)
        if weights is None:
            return NotBinary("weights_not_constant", "the weights depend on an input of the graph"), "float"
        binary = analyse_weights(_output_channels_first(call, weights, left_weight=left_weight))
        if not isinstance(binary, BinaryWeights):
            return binary, "float"
        plan = plan_binarizer(data, self.analysis.of(data), self._sign_zero)
        if isinstance(plan, NotBinary):
            codes = self._plan_codes(data, _channel_axis(call, data, left_weight=left_weight))
            if codes is None:
                if plan.reason == "activations_float":
                    plan = replace(plan, detail=missing_condition(data, self.analysis, self.describe))
                return plan, "binary_weight"
            plan = codes
        else:
            plan = self._earlier_start(data, plan, _channel_axis(call, data, left_weight=left_weight))
        proven: Status = "binary" if plan.alphabet == "bipolar" else "binary_weight"
        form = _unsupported_form(call, data, weights)
        if form is not None:
            return form, proven
        plan = self._through_moves(plan)
        if name == "relax.matmul":
            found = _dense(call, data, weights, plan, left_weight=left_weight)
        else:
            found = _convolution(call, data, weights, plan)
        # A padding outside the alphabet is another alphabet; what else is missing is only a kernel.
        failed = isinstance(found, NotBinary) and found.reason != "unsupported_form"
        return found, "binary_weight" if failed else proven

    def _plan_codes(self, data: relax.Expr, channel_axis: int | None) -> Binarizer | None:
        """``data`` as codes (or bits), or None."""
        plan = self._codes.plan(data, self.analysis.of(data), channel_axis)
        if plan is not None and plan.levels and fit_codes(plan.levels, zero_padded=False) is None:
            return None
        return plan

    def _earlier_start(self, data: relax.Expr, plan: Binarizer, channel_axis: int | None) -> Binarizer:
        """Instead of the two values that a chain makes, pack what the chain starts from."""
        if not plan.base.same_as(data) or plan.alphabet == "ternary" or plan.zero_taken_as_plus or plan.rounded:
            return plan
        found = self._plan_codes(data, channel_axis)
        return plan if found is None or found.levels else found

    def _through_moves(self, plan: Binarizer) -> Binarizer:
        """Start before a transpose or reshape that the moves behind the comparison undo."""
        while plan.moves and plan.threshold.size == 1:
            definition = self.analysis.definition(plan.base)
            if not isinstance(definition, Call) or op_name(definition) not in ("relax.permute_dims", "relax.reshape"):
                break
            inner = definition.args[0]
            if not isinstance(inner, Var):
                break
            plan = replace(plan, base=inner, moves=(definition, *plan.moves))
        return plan


def _output_channels_first(call: Call, weights: Array, *, left_weight: bool) -> Array:
    """``weights`` with the axis of the output channels or features first."""
    name = op_name(call)
    if name == "relax.matmul" and not left_weight:
        return np.moveaxis(weights, -1, 0)
    # A transposed convolution stores input channels first, and output channels per group second.
    return np.moveaxis(weights, 1, 0) if name.endswith("_transpose") else weights


def _channel_axis(call: Call, data: relax.Expr, *, left_weight: bool) -> int | None:
    """The axis of the activation that holds a layer's input channels or features, if thresholds may vary along it."""
    rank = len(static_shape(data) or ())
    if op_name(call) != "relax.matmul":
        return 1
    return None if left_weight else rank - 1


def _unsupported_form(call: Call, data: relax.Expr, weights: Array) -> NotBinary | None:
    name = op_name(call)
    shape, out = static_shape(data), static_shape(call)
    if shape is None or out is None:
        return NotBinary("unsupported_form", "dynamic shape")
    if dtype_of(data) != "float32" or dtype_of(call) != "float32":
        return NotBinary("unsupported_form", f"dtype {dtype_of(data)}; binary kernels take float32")
    if name == "relax.matmul":
        fits = weights.ndim == 2 and len(shape) >= 2
        return None if fits else NotBinary("unsupported_form", f"matrix product of {len(shape)}-D by {weights.ndim}-D")
    if name not in ("relax.nn.conv1d", "relax.nn.conv2d"):
        return NotBinary("unsupported_form", f"{name.removeprefix('relax.nn.')} has no binary kernel")
    layout = str(call.attrs.data_layout), str(call.attrs.kernel_layout)
    if layout not in (("NCHW", "OIHW"), ("NCW", "OIW")):
        return NotBinary("unsupported_form", f"layout {layout[0]}/{layout[1]}")
    return None


def _convolution(call: Call, data: relax.Expr, weights: Array, plan: Binarizer) -> Match | NotBinary:
    shape = _shape(data)
    strides, dilations, pads = (
        [int(size) for size in sizes] for sizes in (call.attrs.strides, call.attrs.dilation, call.attrs.padding)
    )
    prefix = _simplified(plan)
    suffix: tuple[Move, ...] = ()
    if op_name(call) == "relax.nn.conv1d":
        batch, channels, width = shape
        shape = (batch, channels, 1, width)
        strides, dilations, pads = [1, *strides], [1, *dilations], [0, pads[0], 0, pads[1]]
        weights = weights[:, :, None, :]
        prefix = (*prefix, ("reshape", shape))
        suffix = (("reshape", _shape(call)),)
        if plan.threshold.size > 1 and not plan.levels:
            aligned = (1,) * (3 - plan.threshold.ndim) + plan.threshold.shape
            plan = replace(plan, threshold=plan.threshold.reshape(*aligned[:2], 1, aligned[2]))
    ring, zero_pads = None, any(pads)
    if plan.padding is not None and zero_pads and plan.padding.value != 0.0:
        # Two rings of different values: pack the padded tensor itself.
        packed = _packed_as_it_is(data, plan)
        if packed is None:
            return NotBinary("padding_not_in_alphabet", "an explicit pad and zero padding of the convolution together")
        plan, prefix = packed, ()
    elif plan.padding is not None:
        top, left, bottom, right = plan.padding.widths
        ring = None if plan.padding.value == 0.0 and plan.alphabet != "affine" else plan.padding.value
        pads = [pads[0] + top, pads[1] + left, pads[2] + bottom, pads[3] + right]
        shape = (shape[0], shape[1], shape[2] - top - bottom, shape[3] - left - right)
    if (plan.alphabet == "affine" or plan.levels) and zero_pads:
        # Two values that are no opposites may be codes about 0 all the same: {-0.5, 1} has 0 a third of the way.
        levels = plan.levels or (plan.low, plan.high)
        if fit_codes(levels, zero_padded=True) is None:
            shown = ", ".join(f"{level:g}" for level in levels)
            return NotBinary("padding_not_in_alphabet", f"zero padding beside the values {shown}")
    geometry = ConvGeometry(
        batch=shape[0],
        in_channels=shape[1],
        height=shape[2],
        width=shape[3],
        out_channels=weights.shape[0],
        kernel=(weights.shape[2], weights.shape[3]),
        strides=(strides[0], strides[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        dilations=(dilations[0], dilations[1]),
        groups=int(call.attrs.groups),
    )
    threshold = _channel_threshold(plan, channel_axis_from_end=3)
    if threshold is None:
        packed = _packed_as_it_is(data, plan)
        if packed is None or plan.padding is not None:
            return NotBinary("unsupported_form", "a threshold per pixel")
        plan, threshold, prefix = packed, packed.threshold, prefix[len(prefix) - len(suffix) :]
    return Match(plan, _spec(plan, prefix, suffix, threshold, ring, geometry, 0, weights))


def _dense(call: Call, data: relax.Expr, weights: Array, plan: Binarizer, *, left_weight: bool) -> Match | NotBinary:
    prefix = _simplified(plan)
    shape, out = _shape(data), _shape(call)
    threshold = _channel_threshold(plan, channel_axis_from_end=1)
    if threshold is None or plan.padding is not None or (left_weight and threshold.size > 1 and not plan.levels):
        packed = _packed_as_it_is(data, plan)
        if packed is None:
            return NotBinary(
                "unsupported_form", "the activation of a matrix product is padded or has a threshold per row"
            )
        plan, threshold, prefix = packed, packed.threshold, ()
    suffix: tuple[Move, ...]
    if left_weight:
        # w·a = (aᵀ·wᵀ)ᵀ over the last two axes.
        swap = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        rows, features = math.prod(shape[:-2]) * shape[-1], shape[-2]
        prefix = (*prefix, ("permute", swap), ("reshape", (rows, features)))
        suffix = (("reshape", tuple(out[axis] for axis in swap)), ("permute", swap))
        matrix = np.ascontiguousarray(weights.T)
    else:
        features = shape[-1]
        rows = math.prod(shape[:-1])
        flat = len(shape) == 2
        prefix = prefix if flat else (*prefix, ("reshape", (rows, features)))
        suffix = () if flat else (("reshape", out),)
        matrix = weights
    return Match(plan, _spec(plan, prefix, suffix, threshold, None, None, rows, matrix))


def _spec(
    plan: Binarizer,
    prefix: tuple[Move, ...],
    suffix: tuple[Move, ...],
    threshold: Array,
    ring: float | None,
    geometry: ConvGeometry | None,
    rows: int,
    weights: Array,
) -> BinarySpec:
    return BinarySpec(
        input_shape=_shape(plan.base),
        prefix=prefix,
        suffix=suffix,
        predicate=plan.predicate,
        threshold=threshold,
        direction=_channel_direction(plan, geometry, weights),
        low=plan.low,
        high=plan.high,
        ring=ring,
        geometry=geometry,
        rows=rows,
        weights=np.ascontiguousarray(weights),
        scale=None,
        bias=None,
        rounded=plan.rounded,
        levels=plan.levels,
    )


def _channel_direction(plan: Binarizer, geometry: ConvGeometry | None, weights: Array) -> Array | None:
    """The direction as [C, 1, 1] (conv) or [K] (dense)."""
    if plan.direction is None:
        return None
    channels, trailing = (geometry.in_channels, (1, 1)) if geometry else (weights.shape[0], ())
    return np.ascontiguousarray(np.broadcast_to(plan.direction, (channels,))).reshape(-1, *trailing)


def _packed_as_it_is(data: relax.Expr, plan: Binarizer) -> Binarizer | None:
    """Compare the activation's own float values, ``low`` and ``high``, instead of what they were made from."""
    if not isinstance(data, Var) or plan.alphabet == "ternary" or plan.high <= plan.low:
        return None
    middle = np.asarray((plan.low + plan.high) / 2, np.float32)
    return replace(plan, base=data, threshold=middle, predicate="ge", moves=(), padding=None)


def _channel_threshold(plan: Binarizer, *, channel_axis_from_end: int) -> Array | None:
    """The threshold as a scalar or as [C, 1, 1] (conv) / [K] (dense); None if it varies along another axis.

    Several levels have one more axis in front.
    """
    threshold = plan.threshold
    if plan.levels:
        trailing = (1,) * (channel_axis_from_end - 1)
        return threshold if threshold.ndim == 1 else threshold.reshape(*threshold.shape, *trailing)
    if threshold.size == 1:
        return threshold.reshape(())
    shape = threshold.shape
    axis = len(shape) - channel_axis_from_end
    if axis < 0 or shape[axis] != threshold.size:
        return None
    return np.ascontiguousarray(threshold.reshape(-1, *(1,) * (channel_axis_from_end - 1)))


def _simplified(plan: Binarizer) -> tuple[Move, ...]:
    """The moves with adjacent transposes and reshapes joined and those that do nothing dropped."""
    moves: list[Move] = []
    shapes = [_shape(plan.base)]
    for call in plan.moves:
        move: Move
        if op_name(call) == "relax.permute_dims":
            axes = call.attrs.axes
            move = ("permute", tuple(int(a) for a in axes) if axes is not None else tuple(range(len(shapes[-1])))[::-1])
        else:
            move = ("reshape", _shape(call))
        if moves and moves[-1][0] == move[0]:
            previous = moves.pop()
            shapes.pop()
            if move[0] == "permute":
                move = ("permute", tuple(previous[1][axis] for axis in move[1]))
        before = shapes[-1]
        after = tuple(before[axis] for axis in move[1]) if move[0] == "permute" else move[1]
        if (move[0] == "permute" and move[1] == tuple(range(len(before)))) or (
            move[0] == "reshape" and after == before
        ):
            continue
        moves.append(move)
        shapes.append(after)
    return tuple(moves)


def _shape(expr: relax.Expr) -> tuple[int, ...]:
    shape = static_shape(expr)
    assert shape is not None
    return shape


def _count_uses(function: relax.Function) -> Counter[Var]:
    uses: Counter[Var] = Counter()

    def visit(expr: Any) -> None:
        if isinstance(expr, Var):
            uses[expr] += 1

    for block in function.body.blocks:
        for binding in block.bindings:
            relax.analysis.post_order_visit(binding.value, visit)
    relax.analysis.post_order_visit(function.body.body, visit)
    return uses


def _sole_readers(function: relax.Function) -> dict[Var, Var]:
    """For each variable that is the first argument of a call: the variable bound to (the last such) call."""
    return {
        binding.value.args[0]: binding.var
        for block in function.body.blocks
        for binding in block.bindings
        if isinstance(binding.value, Call) and binding.value.args and isinstance(binding.value.args[0], Var)
    }
