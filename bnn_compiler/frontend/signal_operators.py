"""Discrete Fourier transforms as products with constant matrices.

``DFT(x)`` of length L along an axis, x[..., n, c] with c = 0 the real and c = 1 the imaginary part:

    X[k] = sum over n of x[n] * exp(-+ 2 pi i k n / L), divided by L for the inverse (+)

which is one matrix from all (n, c) to all (k, real or imaginary). ``onesided`` keeps k <= L / 2; inverse and onesided
is the transform of what that keeps, where each k but 0 and L / 2 stands for L - k, too, and the result is real. Shorter
signals than L are padded with zeros, longer ones cut.

``STFT(x)`` gathers frames of x, scales them by a window, and is the DFT of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import NodeProto

from bnn_compiler.errors import ModelError

from .node_emitter import Lowering, NodeEmitter
from .onnx_graph import describe_node, integer_attribute
from .versioned_operators import emit_reshape

MAX_MATRIX = 1 << 24
"""Elements. A transform of 2048 complex numbers has as many."""


def dft_matrix(samples: int, parts: int, length: int, *, inverse: bool, onesided: bool) -> npt.NDArray[Any]:
    """From [samples, parts] to [bins, 2], or [bins, 1] where inverse and onesided, both flattened, in float64."""
    real = inverse and onesided
    bins = length if real or not onesided else length // 2 + 1
    used = min(samples, length // 2 + 1 if real else length)
    matrix = np.zeros((samples, parts, bins, 1 if real else 2))
    n = np.arange(used)[:, None]
    # k·n modulo L before the multiplication with pi: the angle then has no error of its own.
    angle = 2 * np.pi * (n * np.arange(bins) % length) / length
    cosine, sine = np.cos(angle), np.sin(angle) * (1 if inverse else -1)
    matrix[:used, 0, :, 0] = cosine
    if parts == 2:
        matrix[:used, 1, :, 0] = -sine
    if real:
        weight = np.where((n == 0) | (2 * n == length), 1, 2)
        matrix[:used] *= weight[:, :, None, None]
    else:
        matrix[:used, 0, :, 1] = sine
        if parts == 2:
            matrix[:used, 1, :, 1] = cosine
    return (matrix / length if inverse else matrix).reshape(samples * parts, -1)


def _lower_dft(node: NodeProto, emit: NodeEmitter) -> str | None:
    data, shape = node.input[0], emit.shape(node.input[0])
    if shape is None:
        return "the shape of its input is not known"
    rank, parts = len(shape), shape[-1]
    inverse, onesided = (bool(integer_attribute(node, name, 0)) for name in ("inverse", "onesided"))
    axis = integer_attribute(node, "axis", 1)
    if emit.opset >= 20:
        given = _optional_integer(node, emit, 2, -2)
        if given is None:
            return "its axis is not a constant"
        axis = given
    axis %= rank
    if axis == rank - 1 or parts not in (1, 2):
        raise ModelError(f"{describe_node(node)} transforms axis {axis} of data of shape {list(shape)}")
    samples = shape[axis]
    length = _optional_integer(node, emit, 1, 2 * (samples - 1) if inverse and onesided else samples)
    if length is None or length < 1:
        return "its length is not a constant of 1 or more"
    columns = 2 * length
    if samples * parts * columns > MAX_MATRIX:
        return f"a transform of {samples} numbers is too long"
    matrix = dft_matrix(samples, parts, length, inverse=inverse, onesided=onesided)
    last = [index for index in range(rank) if index != axis]
    order = [*last[:-1], axis, last[-1]]
    lines = emit_reshape(emit, _transposed(emit, data, order), [shape[i] for i in last[:-1]] + [samples * parts])
    product = emit("MatMul", lines, emit.constant(matrix))
    width = 1 if inverse and onesided else 2
    bins = emit_reshape(emit, product, [shape[i] for i in last[:-1]] + [matrix.shape[1] // width, width])
    emit.result("Transpose", bins, perm=np.argsort(order).tolist())
    return None


def _lower_stft(node: NodeProto, emit: NodeEmitter) -> str | None:
    signal, shape = node.input[0], emit.shape(node.input[0])
    step = emit.constant_value(node.input[1])
    window = node.input[2] if len(node.input) > 2 else ""
    window_shape = emit.shape(window) if window else None
    length = _optional_integer(node, emit, 3, window_shape[0] if window_shape else 0)
    if shape is None or (window and window_shape is None):
        return "the shapes of its inputs are not known"
    if step is None or not length:
        return "its frame step or length is not a constant"
    batch, samples, parts = (*shape, 1)[:3]
    frames = (samples - length) // int(step.item()) + 1
    columns = 2 * length
    if frames < 1 or length * parts * columns > MAX_MATRIX:
        return f"frames of {length} numbers are too long"
    starts = np.arange(frames)[:, None] * int(step.item())
    pieces = emit("Gather", emit_reshape(emit, signal, [batch, samples, parts]),
                  emit.constant(starts + np.arange(length), np.int64), axis=1)  # fmt: skip
    if window:
        pieces = emit("Mul", pieces, emit_reshape(emit, window, [length, 1]))
    matrix = dft_matrix(length, parts, length, inverse=False, onesided=bool(integer_attribute(node, "onesided", 1)))
    product = emit("MatMul", emit_reshape(emit, pieces, [batch, frames, length * parts]), emit.constant(matrix))
    emit.result("Reshape", product, emit.integers([batch, frames, matrix.shape[1] // 2, 2]))
    return None


def _transposed(emit: NodeEmitter, data: str, order: Sequence[int]) -> str:
    return data if list(order) == sorted(order) else emit("Transpose", data, perm=list(order))


def _optional_integer(node: NodeProto, emit: NodeEmitter, index: int, default: int) -> int | None:
    """An operand that is one integer: its value, the default where it is absent, or ``None`` where it is computed."""
    if index >= len(node.input) or not node.input[index]:
        return default
    value = emit.constant_value(node.input[index])
    return None if value is None or value.size != 1 else int(value.reshape(-1)[0])


SIGNAL_LOWERINGS: Mapping[str, Lowering] = {"DFT": _lower_dft, "STFT": _lower_stft}
"""By operator."""
