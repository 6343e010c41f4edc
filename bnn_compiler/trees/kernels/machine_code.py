"""The one door to numba: typed decorators, popcount, and a random generator of integers.

Every decision of a search is taken on integers computed here, so a seed gives the same tree on every machine.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from numba.core import types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic

from bnn_compiler.cache_folder import cache_folder

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile ``function`` to machine code on its first call; the code is kept in the user's cache folder."""
    wrapped: Any = numba.njit(nogil=True)(function)
    folder = cache_folder("machine-code")
    if folder is not None:
        # numba notices changes of a function's own file only, not of the files of functions it calls: so machine code
        # is filed under a digest of all of them. The folder is read here, and put back for other packages.
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = before or str(folder / _SOURCES)
        with contextlib.suppress(RuntimeError, OSError):  # numba finds no place to write to
            wrapped._cache = _ForgivingCache(function)
        numba.config.CACHE_DIR = before
    return wrapped  # type: ignore[no-any-return]


class _ForgivingCache(FunctionCache):  # type: ignore[misc]  # numba has no types
    """numba's, but a full disk or a damaged file costs time, not the result."""

    @contextlib.contextmanager
    def _guard_against_spurious_io_errors(self) -> Iterator[None]:
        with contextlib.suppress(Exception):  # damaged files make unpickling raise anything
            yield


def _digest_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


_SOURCES = _digest_of_sources()


def _popcount_intrinsic(_context: Any, word: Any) -> Any:
    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


# LLVM turns a loop over this into the widest popcount the CPU has.
popcount: Callable[[Any], Any] = intrinsic(_popcount_intrinsic)


@compiled
def next_random(state: Words) -> np.uint64:
    """The next of 2^64 equally likely integers (SplitMix64, Steele et al. 2014); ``state`` is uint64[1]."""
    state[0] = state[0] + np.uint64(0x9E3779B97F4A7C15)
    word = state[0]
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.uint64 = word ^ (word >> np.uint64(31))
    return mixed


@compiled
def random_below(state: Words, bound: int) -> int:
    """An integer in [0, bound), bound < 2^31; the bias of multiply-and-shift is below 2^-32."""
    return int(((next_random(state) >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32))
