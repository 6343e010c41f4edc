"""What can be asked of the compiler, frozen once and passed down explicitly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from bnn_compiler.limits import DEFAULT_LIMITS, Limits

Algorithm = Literal["auto", "popcount", "bitsliced", "float"]
SignZero = Literal["auto", "plus", "exact"]


@dataclass(frozen=True)
class CompileOptions:
    """Options of one compilation; the command line and ``compile_model`` both build this.

    ``sign_zero`` says what becomes of ``Sign(0)`` in front of a binary layer: ``exact`` keeps ONNX's 0 (a three-valued
    layer), ``plus`` takes it as +1 (a binary layer), ``auto`` does the one where 0 is common and the other where it is
    an accident of float arithmetic; the report says so of each Sign. ``exact_signs`` are tensors whose Sign keeps 0.
    ``max_depth`` bounds channel trees. ``measure`` times the kernels of each layer on this machine and takes the
    fastest. ``limits`` bounds the model's size.
    """

    target: str = "native"
    algorithm: Algorithm = "auto"
    sign_zero: SignZero = "auto"
    exact_signs: frozenset[str] = frozenset()
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_depth: int = 8
    measure: bool = False
    verify: bool = True
    dump_dir: Path | None = None
    limits: Limits = DEFAULT_LIMITS
