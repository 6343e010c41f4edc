"""Several kernels in one build, each with the tensors it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tvm

from bnn_compiler.bench import Call
from bnn_compiler.code_generation import code_generation


class Kernels:
    """Kernels of one build with their arguments."""

    def __init__(self, target: tvm.target.Target) -> None:
        self._target = target
        self._functions: dict[str, Any] = {}
        self._arguments: dict[str, list[Any]] = {}

    def add(self, name: str, function: Any, arguments: Sequence[Any]) -> None:
        """Add a kernel and the tensors it is called with."""
        self._functions[name] = function.with_attr("global_symbol", name)
        self._arguments[name] = list(arguments)

    def argument(self, name: str, index: int) -> Any:
        """A tensor that a kernel is called with."""
        return self._arguments[name][index]

    def calls(self) -> dict[str, Call]:
        """Build, and return one call per kernel, in the order they were added."""
        with code_generation():
            executable = tvm.compile(tvm.IRModule(self._functions), target=self._target)

        def call_of(name: str) -> Call:
            function, arguments = executable[name], self._arguments[name]
            return lambda: function(*arguments)

        return {name: call_of(name) for name in self._functions}


def tensor(array: Any) -> Any:
    return tvm.runtime.tensor(array)
