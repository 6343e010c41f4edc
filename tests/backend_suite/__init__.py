"""ONNX's own backend test suite (``onnx.backend.test``), compiled case by case."""
