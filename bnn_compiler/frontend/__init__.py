"""ONNX to Relax: check, normalise, import."""

from .front_end import import_onnx
from .imported_model import ImportedModel

__all__ = ["ImportedModel", "import_onnx"]
