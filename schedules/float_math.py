"""exp and tanh in arithmetic that LLVM vectorises, in place of calls to the C library, one per element.

exp(x) = 2^n * exp(r), n = round(x / ln 2), r = x - n ln 2 in [-0.35, 0.35], with the polynomial of Cephes' expf: within
2 ulp of the true value. Overflow gives inf, underflow below the smallest normal number gives 0, NaN stays NaN: bounds
are selections that keep it, and not ``max`` and ``min``, which make a number of it. (TVM's vectoriser knows no
``isnan``: a loop that has one stays scalar.)

tanh(x) = x P(x^2) / Q(x^2), the rational approximation of Eigen (and ONNX Runtime), within 4 ulp; +-1 beyond +-7.9.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi
from tvm import tirx
from tvm.ir import Call

_DTYPE = "float32"
_LOG2_E = 1.44269504088896341
# ln 2 in two parts; the first has few bits, so that n times it is exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
# Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
_ROUNDING_BIAS = 12582912.0
_ROUNDING_BITS = 0x4B400000
_LOWEST, _HIGHEST = -87.336544, 88.722839
# Eigen's ptanh_float, from the highest power down.
_TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
_TANH_LIMIT = 7.90531110763549805


def exp(x: Any, nonpositive: bool = False) -> Any:
    """Expression for exp of a float32 scalar or vector expression; see the module's docstring.

    ``nonpositive`` promises x <= 0 (or NaN) and saves what only large x needs.
    """
    lanes = _lanes(x)

    def number(value: float, dtype: str = _DTYPE) -> Any:
        constant = tirx.const(value, dtype)
        return constant if lanes == 1 else tirx.Broadcast(constant, lanes)

    suffix = "" if lanes == 1 else f"x{lanes}"
    # Used several times below; written out each time, a Let inside it would be bound several times, which TVM's
    # vectoriser refuses (tanh of tanh).
    argument, x = x, tirx.Var("argument", _DTYPE + suffix)
    clamped = tirx.Select(x < number(_LOWEST), number(_LOWEST), x)
    if not nonpositive:
        clamped = tirx.Select(x > number(_HIGHEST), number(_HIGHEST), clamped)
    biased_var = tirx.Var("biased", _DTYPE + suffix)
    n = biased_var - number(_ROUNDING_BIAS)
    r_var = tirx.Var("r", _DTYPE + suffix)
    polynomial = number(_POLYNOMIAL[0])
    for coefficient in _POLYNOMIAL[1:]:
        polynomial = polynomial * r_var + number(coefficient)
    mantissa = polynomial * r_var * r_var + r_var + number(1.0)
    exponent = tirx.reinterpret(f"int32{suffix}", biased_var) - number(_ROUNDING_BITS, "int32")
    if nonpositive:
        scaled = mantissa * _power_of_two(exponent, number, suffix)
    else:
        # 2^n in two factors, because 2^128 is no float32 though exp(88.7) is.
        half = exponent >> number(1, "int32")
        scaled = mantissa * _power_of_two(half, number, suffix) * _power_of_two(exponent - half, number, suffix)
    reduced = tirx.Let(r_var, clamped - n * number(_LN2_HIGH) - n * number(_LN2_LOW), scaled)
    value = tirx.Let(biased_var, clamped * number(_LOG2_E) + number(_ROUNDING_BIAS), reduced)
    value = tirx.Select(x < number(_LOWEST), number(0.0), value)
    if not nonpositive:
        value = tirx.Select(x > number(_HIGHEST), number(np.inf), value)
    return tirx.Let(x, argument, value)


def tanh(x: Any) -> Any:
    """Expression for tanh of a float32 scalar expression; see the module's docstring."""

    def number(value: float) -> Any:
        return tirx.const(value, _DTYPE)

    def polynomial(coefficients: tuple[float, ...], argument: Any) -> Any:
        value = number(coefficients[0])
        for coefficient in coefficients[1:]:
            value = value * argument + number(coefficient)
        return value

    argument, x = x, tirx.Var("argument", _DTYPE)  # as in exp
    x_var, square_var = tirx.Var("x", _DTYPE), tirx.Var("square", _DTYPE)
    ratio = x_var * polynomial(_TANH_P, square_var) / polynomial(_TANH_Q, square_var)
    value = tirx.Let(x_var, x, tirx.Let(square_var, x_var * x_var, ratio))
    # Beyond the limits exactly ±1, which the ratio may miss by an ulp: GELU adds 1.
    value = tirx.Select(x > number(_TANH_LIMIT), number(1.0), value)
    value = tirx.Select(x < number(-_TANH_LIMIT), number(-1.0), value)
    return tirx.Let(x, argument, value)


def expand_math(body: Any) -> Any:
    """Replace ``tirx.exp``, ``tirx.sigmoid`` and ``tirx.tanh`` of float32 in a statement, and ``tirx.nearbyint``.

    The last is a processor's instruction, but TVM's vectoriser does not know so and leaves a loop that rounds scalar.
    """
    return tvm_ffi.structural_map(body, (Call, _expand))


def _expand(call: Call) -> Any:
    name = str(getattr(call.op, "name", ""))
    if name == "tirx.nearbyint":
        return tirx.call_llvm_pure_intrin(str(call.ty.dtype), "llvm.nearbyint", call.args[0])
    if name not in ("tirx.exp", "tirx.sigmoid", "tirx.tanh") or str(call.ty.dtype) != _DTYPE:
        return call
    if name == "tirx.exp":
        return exp(call.args[0])
    if name == "tirx.tanh":
        return tanh(call.args[0])
    one = tirx.const(1.0, _DTYPE)
    return one / (one + exp(-call.args[0]))


def _power_of_two(exponent: Any, number: Any, suffix: str) -> Any:
    bits = (exponent + number(127, "int32")) << number(23, "int32")
    return tirx.reinterpret(f"{_DTYPE}{suffix}", bits)


def _lanes(x: Any) -> int:
    dtype = str(x.ty.dtype)
    return int(dtype.split("x")[1]) if "x" in dtype else 1
