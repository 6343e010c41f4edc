"""bnnc: a compiler for binary neural networks.

    import bnn_compiler
    compiled = bnn_compiler.compile_model("model.onnx")
    outputs = compiled.run({"x": x})
    compiled.export("model.so")
    model = bnn_compiler.load("model.so")

Names are imported when they are first used: the command line's help needs neither TVM nor ONNX.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from bnn_compiler.home_folder import name_a_home

if TYPE_CHECKING:
    from bnn_compiler.compiled_network import CompiledNetwork
    from bnn_compiler.driver import compile_model, inspect_model
    from bnn_compiler.errors import BnncError
    from bnn_compiler.limits import Limits
    from bnn_compiler.runtime import CompiledModel, load
    from bnn_compiler.trees.solve import solve_channel_tree

name_a_home()

__all__ = [
    "BnncError",
    "CompiledModel",
    "CompiledNetwork",
    "Limits",
    "compile_model",
    "inspect_model",
    "load",
    "solve_channel_tree",
]

_HOMES = {
    "BnncError": "errors",
    "CompiledModel": "runtime",
    "CompiledNetwork": "compiled_network",
    "Limits": "limits",
    "compile_model": "driver",
    "inspect_model": "driver",
    "load": "runtime",
    "solve_channel_tree": "trees.solve",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
