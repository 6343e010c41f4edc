"""Check and prepare the arrays of one call of a compiled function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from bnn_compiler.errors import FeedError
from bnn_compiler.tensor_spec import TensorSpec

Array = npt.NDArray[Any]


class Signature:
    """Inputs and outputs of a compiled function.

    The checks of arrays that need nothing done take well under a microsecond per call; everything else is out of line.
    """

    def __init__(self, name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        """``name`` is for messages."""
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self.input_names = tuple(spec.name for spec in inputs)
        self.output_names = tuple(spec.name for spec in outputs)
        self._input_types = [(spec.shape, np.dtype(spec.dtype)) for spec in inputs]
        self._output_types = [(spec.shape, np.dtype(spec.dtype)) for spec in outputs]
        self._named_inputs = [(spec.name, spec.shape, np.dtype(spec.dtype)) for spec in inputs]
        self._named_outputs = [(spec.name, spec.shape, np.dtype(spec.dtype)) for spec in outputs]

    def new_outputs(self) -> dict[str, Array]:
        """Return uninitialised arrays for the outputs, by name and in order."""
        empty = np.empty
        return {name: empty(shape, dtype) for name, shape, dtype in self._named_outputs}

    def bind_inputs(self, feeds: Mapping[str, Array] | Array) -> list[Array]:
        """Return the arrays of ``feeds`` in the order of the inputs, ready to hand over.

        Raises:
            FeedError: ``feeds`` is neither a mapping nor an array, or one is missing, unknown, or of another shape or
                dtype.
        """
        if type(feeds) is dict and len(feeds) == len(self._named_inputs):
            bound = []
            for name, shape, dtype in self._named_inputs:
                array = feeds.get(name)
                # _is_plain(array, shape, dtype), whose call would take as long as the comparisons.
                if (
                    type(array) is not np.ndarray
                    or array.shape != shape
                    or array.dtype != dtype
                    or not array.flags.carray
                ):
                    break
                bound.append(array)
            else:
                return bound
        if isinstance(feeds, np.ndarray):
            if len(self.inputs) != 1:
                raise FeedError(f"a bare array is no feed for several inputs; expected {_describe(self.inputs)}")
            return self.bind_positional([feeds])
        if not isinstance(feeds, Mapping):
            raise FeedError(f"feeds are a {type(feeds).__name__}; expected arrays by name: {_describe(self.inputs)}")
        try:
            arrays = [feeds[name] for name in self.input_names]
        except KeyError:
            self._refuse_names(feeds)
        if len(feeds) != len(arrays):
            self._refuse_names(feeds)
        return self.bind_positional(arrays)

    def bind_positional(self, arrays: Sequence[Array]) -> list[Array]:
        """Return ``arrays``, which are in the order of the inputs, ready to hand over.

        Raises:
            FeedError: their number, or a shape or dtype, is wrong.
        """
        if len(arrays) != len(self.inputs):
            raise FeedError(f"{self.name}: got {len(arrays)} arrays; expected {_describe(self.inputs)}")
        bound = []
        for array, (shape, dtype), spec in zip(arrays, self._input_types, self.inputs, strict=True):
            bound.append(array if _is_plain(array, shape, dtype) else _prepare_input(spec, array))
        return bound

    def bind_outputs(self, out: Mapping[str, Array], inputs: Sequence[Array]) -> tuple[list[Array], list[Array]]:
        """Return (results, buffers): where each output shall end up, and what the kernels may write it into.

        They are the same array unless the caller's is strided, misaligned or shares memory with another of the call.

        Raises:
            FeedError: ``out`` is no mapping, an array is of another shape or dtype or read-only, or a name is unknown.
        """
        results: list[Array] = []
        buffers: list[Array] = []
        used = 0
        if type(out) is not dict and not isinstance(out, Mapping):
            raise FeedError(f"out is a {type(out).__name__}; expected arrays by name: {_describe(self.outputs)}")
        for spec, (shape, dtype) in zip(self.outputs, self._output_types, strict=True):
            result = out.get(spec.name)
            if result is None:
                result = buffer = np.empty(shape, dtype)
            else:
                used += 1
                if not (_is_plain(result, shape, dtype) and _is_disjoint(result, inputs, buffers)):
                    _check(spec, result, "output")
                    if not result.flags.writeable:
                        raise FeedError(f"output {spec.name!r}: the array is read-only")
                    buffer = np.empty(shape, dtype)
                else:
                    buffer = result
            results.append(result)
            buffers.append(buffer)
        if used != len(out):
            unknown = ", ".join(repr(name) for name in out if name not in self.output_names)
            raise FeedError(f"unknown output {unknown}; the outputs are {_describe(self.outputs)}")
        return results, buffers

    def _refuse_names(self, feeds: Mapping[str, Array]) -> NoReturn:
        names = {spec.name for spec in self.inputs}
        missing = sorted(names - set(feeds))
        extra = sorted(set(feeds) - names)
        found = [f"missing {', '.join(map(repr, missing))}"] if missing else []
        found += [f"unknown {', '.join(map(repr, extra))}"] if extra else []
        raise FeedError(f"{' and '.join(found)}; expected {_describe(self.inputs)}")


def _is_plain(array: object, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    """Return whether ``array`` is right and can be handed over as it is: C-contiguous, aligned and writable."""
    return type(array) is np.ndarray and array.shape == shape and array.dtype == dtype and array.flags.carray


def _is_disjoint(array: Array, *others: Sequence[Array]) -> bool:
    """Return whether ``array`` shares no memory with any array of the sequences ``others``."""
    for sequence in others:
        for other in sequence:
            if array is other:
                return False
            # Two arrays that both own their memory cannot overlap; asking NumPy takes half a microsecond.
            if (array.base is not None or other.base is not None) and np.may_share_memory(array, other):
                return False
    return True


def _check(spec: TensorSpec, array: object, kind: str) -> None:
    if not isinstance(array, np.ndarray):
        raise FeedError(f"{kind} {spec.name!r}: expected a NumPy array, got {type(array).__name__}")
    if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
        raise FeedError(
            f"{kind} {spec.name!r}: expected {spec.dtype}{list(spec.shape)}, got {array.dtype}{list(array.shape)}"
        )


def _prepare_input(spec: TensorSpec, array: Array) -> Array:
    """Return ``array`` as one that NumPy hands over by DLPack and kernels can read: copied only if it must be."""
    _check(spec, array, "input")
    plain = np.asarray(array)
    if not (plain.flags.c_contiguous and plain.flags.aligned):
        return np.array(plain, order="C")
    # DLPack (as TVM reads it) has no read-only arrays. A view through the address has no such flag; kernels never write
    # to their inputs.
    return plain if plain.flags.writeable else np.asarray(_WritableView(plain))


class _WritableView:
    """Presents a read-only array as writable to ``np.asarray``; keeps it alive."""

    def __init__(self, array: Array) -> None:
        self._array = array
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype}{list(spec.shape)}" for spec in specs)
