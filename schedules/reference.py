"""What the kernels compute, in NumPy: slow, obvious, and the oracle of their tests.

Convolutions are computed on activation *values*, with padding in place, and never count bits; so the identities in
``popcount`` are tested and not repeated here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnn_compiler.schedules.geometry import ConvGeometry
from bnn_compiler.schedules.pack_rule import PackRule, Predicate
from bnn_compiler.schedules.pack_weights import strided_order
from bnn_compiler.schedules.popcount import WORD_BITS, Alphabet, code_step, default_zero, planes, words_per

FloatArray = NDArray[Any]
UInt64Array = NDArray[np.uint64]
BoolArray = NDArray[np.bool_]


def multiply_add(a: FloatArray, b: FloatArray, c: FloatArray, *, fused: bool) -> FloatArray:
    """a·b + c in float32, rounded once if ``fused``, else after each operation.

    A product of two float32 is exact in float64; the sum is rounded to odd there, so that rounding it again to float32
    is right (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums", 2008).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if not fused:
            return np.asarray(a.astype(np.float32) * b.astype(np.float32) + c.astype(np.float32))
        product, addend = np.broadcast_arrays(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))
        total = product + addend
        rest = total - product
        error = (product - (total - rest)) + (addend - rest)
        is_even = (total.view(np.uint64) & np.uint64(1)) == 0
        adjust = (error != 0) & is_even & np.isfinite(total)
        toward = np.where(error > 0, np.inf, -np.inf)
        rounded: FloatArray = np.where(adjust, np.nextafter(total, toward), total).astype(np.float32)
        return rounded


def binarise(x: FloatArray, rule: PackRule, parameters: tuple[FloatArray, ...], *, fused: bool) -> list[BoolArray]:
    """One bool array per bit plane; ``parameters`` (scale, shift, threshold as the rule asks) broadcast against x.

    Several thresholds stand along a further axis in front.
    """
    value = x.astype(rule.compute_dtype)
    rest = list(parameters)
    if rule.affine:
        scale, shift = rest.pop(0), rest.pop(0)
        value = multiply_add(value, scale, shift, fused=fused)
    if rule.codes:
        bounds = list(rest.pop(0)) if rule.threshold == "channel" else np.asarray(rule.thresholds, rule.compute_dtype)
        code = np.zeros(value.shape, np.int32)
        for bound, following in zip(bounds, rule.codes[1:], strict=True):
            code[_compare(rule.predicate, value, bound)] = following
        return [(code >> plane & 1).astype(np.bool_) for plane in range(planes(rule.alphabet))]
    bound = rest.pop(0) if rule.threshold == "channel" else np.asarray(rule.threshold, rule.compute_dtype)
    return [_compare(predicate, value, bound) for predicate in rule.predicates()]


def _compare(predicate: Predicate, value: FloatArray, bound: FloatArray) -> BoolArray:
    functions = {"ge": np.greater_equal, "gt": np.greater, "le": np.less_equal, "lt": np.less, "eq": np.equal}
    if predicate == "ne":
        return np.asarray(value != bound)
    if predicate.startswith("n"):
        return ~np.asarray(functions[predicate[1:]](value, bound))
    return np.asarray(functions[predicate](value, bound))


def _pack_last_axis(bits: BoolArray) -> UInt64Array:
    words = words_per(bits.shape[-1])
    padded = np.zeros((*bits.shape[:-1], words * WORD_BITS), np.uint64)
    padded[..., : bits.shape[-1]] = bits
    weights = np.uint64(1) << np.arange(WORD_BITS, dtype=np.uint64)
    packed: UInt64Array = np.bitwise_or.reduce(padded.reshape(*bits.shape[:-1], words, WORD_BITS) * weights, axis=-1)
    return packed


def pack_conv_reference(
    geometry: ConvGeometry,
    x: FloatArray,
    rule: PackRule,
    parameters: tuple[FloatArray, ...],
    *,
    pad_code: int,
    fused: bool,
) -> UInt64Array:
    """Semantics of ``pack.pack_conv_activations``; ``parameters`` are [C] arrays."""
    top, left, bottom, right = geometry.pads
    by_channel = tuple(parameter.reshape(*parameter.shape, 1, 1) for parameter in parameters)
    packed = []
    for index, plane in enumerate(binarise(x, rule, by_channel, fused=fused)):
        ring = bool(pad_code >> index & 1)
        ringed = np.pad(plane, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=ring)
        grouped = ringed.reshape(geometry.batch, geometry.groups, geometry.group_in_channels, *ringed.shape[2:])
        packed.append(np.moveaxis(_pack_last_axis(np.moveaxis(grouped, 2, -1)), -1, 2))
    return np.ascontiguousarray(np.concatenate(packed, axis=2))


def pack_dense_reference(
    x: FloatArray, rule: PackRule, parameters: tuple[FloatArray, ...], *, fused: bool
) -> UInt64Array:
    """Semantics of ``pack.pack_dense_activations``; ``parameters`` are [K] arrays."""
    words = words_per(x.shape[1])
    packed = [_pack_last_axis(strided_order(plane, words)) for plane in binarise(x, rule, parameters, fused=fused)]
    return np.concatenate(packed, axis=1)


def values_of(bits: list[BoolArray], alphabet: Alphabet, zero: int | None = None) -> NDArray[np.int32]:
    """The activation values that bit planes stand for; ``zero`` as in ``popcount``."""
    if alphabet == "ternary":
        return bits[0].astype(np.int32) - bits[1].astype(np.int32)
    code = sum((plane.astype(np.int32) << index for index, plane in enumerate(bits)), np.zeros((), np.int32))
    return np.asarray(code_step(alphabet) * code - (default_zero(alphabet) if zero is None else zero), np.int32)


def conv2d_reference(
    geometry: ConvGeometry, values: NDArray[np.int32], signs: BoolArray, pad_value: int
) -> NDArray[np.int32]:
    """The integer convolution z [N, O, OH, OW] of values [N, C, H, W] with weights ±1, padded with ``pad_value``."""
    top, left, bottom, right = geometry.pads
    padded = np.pad(values, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=pad_value)
    grouped = padded.reshape(geometry.batch, geometry.groups, geometry.group_in_channels, *padded.shape[2:])
    weights = (2 * signs.astype(np.float64) - 1).reshape(
        geometry.groups, geometry.group_out_channels, geometry.group_in_channels, *geometry.kernel
    )
    shape = (geometry.batch, geometry.groups, geometry.group_out_channels, geometry.out_height, geometry.out_width)
    z = np.zeros(shape, np.float64)
    for tap_y in range(geometry.kernel[0]):
        for tap_x in range(geometry.kernel[1]):
            rows = slice(tap_y * geometry.dilations[0], None, geometry.strides[0])
            columns = slice(tap_x * geometry.dilations[1], None, geometry.strides[1])
            window = grouped[..., rows, columns][..., : geometry.out_height, : geometry.out_width]
            # Integers below 2^53: float64 is exact, and has a fast matrix product.
            z += np.einsum("ngchw,goc->ngohw", window.astype(np.float64), weights[..., tap_y, tap_x], optimize=True)
    return z.reshape(geometry.batch, geometry.out_channels, *shape[3:]).astype(np.int32)


def dense_reference(values: NDArray[np.int32], signs: BoolArray) -> NDArray[np.int32]:
    """The integer product z [M, N] of values [M, K] with weights ±1, signs [N, K]."""
    return (values.astype(np.float64) @ (2 * signs.astype(np.float64) - 1).T).astype(np.int32)


def pool_bits_reference(pool: ConvGeometry, bits: BoolArray, joined_by_and: BoolArray) -> BoolArray:
    """Bits [N, C, H, W] joined over the windows of a max-pool: by AND in the channels bool [C], by OR in the others."""
    pooled = np.zeros((*bits.shape[:2], pool.out_height, pool.out_width), np.bool_)
    for y, x in np.ndindex(*pooled.shape[2:]):
        top, left = y * pool.strides[0] - pool.pads[0], x * pool.strides[1] - pool.pads[1]
        rows, columns = (
            [i for i in range(first, first + size * step, step) if 0 <= i < extent]
            for first, size, step, extent in zip(
                (top, left), pool.kernel, pool.dilations, (pool.height, pool.width), strict=True
            )
        )
        window = bits[:, :, rows][:, :, :, columns]
        pooled[:, :, y, x] = np.where(joined_by_and, window.all(axis=(2, 3)), window.any(axis=(2, 3)))
    return pooled


def epilogue_reference(
    z: NDArray[np.int32], scale: FloatArray | None, bias: FloatArray | None, *, fused: bool
) -> NDArray[np.float32]:
    """float(z)·scale + bias; ``scale`` and ``bias`` broadcast against z."""
    y = z.astype(np.float32)
    if scale is not None and bias is not None:
        return multiply_add(y, scale, bias, fused=fused)
    with np.errstate(over="ignore"):
        if scale is not None:
            return y * scale
        return y if bias is None else y + bias
