"""Verification: a compiled network against ONNX Runtime, layer by layer and end to end; ``verify`` begins."""
