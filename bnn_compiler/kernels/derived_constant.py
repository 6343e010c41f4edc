"""Constants that a library does not store: a kernel makes them of stored ones, once, when the library is loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tvm import tirx

from bnn_compiler.constants import Array


@dataclass(frozen=True, eq=False)
class DerivedConstant:
    """``function(*stored, result)`` writes exactly ``value``; ``stored`` is smaller, or the effort would be vain."""

    function: tirx.PrimFunc
    stored: tuple[Array, ...]
    value: Array


#: An argument of a kernel that does not depend on the network's input.
Constant = Array | DerivedConstant


def value_of(constant: Constant) -> Array:
    """The array that a kernel sees."""
    return constant.value if isinstance(constant, DerivedConstant) else constant


def stored_bytes(constants: Iterable[Constant]) -> int:
    """Bytes that a library holds for ``constants``; arrays that several of them use count once."""
    return sum(array.nbytes for array in _stored(constants).values())


def resident_bytes(constants: Iterable[Constant]) -> int:
    """Bytes that ``constants`` take in a loaded library: what is stored, and what is derived from it."""
    constants = list(constants)
    derived = {id(constant): constant.value for constant in constants if isinstance(constant, DerivedConstant)}
    return sum(array.nbytes for array in (_stored(constants) | derived).values())


def _stored(constants: Iterable[Constant]) -> dict[int, Array]:
    arrays: dict[int, Array] = {}
    for constant in constants:
        for array in constant.stored if isinstance(constant, DerivedConstant) else (constant,):
            arrays[id(array)] = array
    return arrays
