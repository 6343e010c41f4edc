"""The command line: ``bnnc compile | run | inspect | bench | tree``.

The library never imports this package. Heavy modules (TVM, ONNX Runtime) are imported inside the commands, so that
``bnnc --help`` answers at once.
"""

from .main import main

__all__ = ["main"]
