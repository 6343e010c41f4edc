"""What can be asked of the compiler, frozen once and passed down explicitly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Algorithm = Literal["auto", "popcount", "bitsliced", "float"]
SignZero = Literal["plus", "exact"]


@dataclass(frozen=True)
class CompileOptions:
    """Options of one compilation; the command line and ``compile_model`` both build this.

    ``sign_zero`` says what ``Sign(0)`` of a general float tensor is: ``plus`` takes it as +1 (a binary layer, said in
    the report), ``exact`` keeps ONNX's 0 (a three-valued layer). ``max_depth`` bounds channel trees. ``measure``
    times the kernels of each layer on this machine and takes the fastest.
    """

    target: str = "native"
    algorithm: Algorithm = "auto"
    sign_zero: SignZero = "plus"
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    max_depth: int = 8
    measure: bool = False
    verify: bool = True
    dump_dir: Path | None = None
