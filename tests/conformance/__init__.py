"""Random graphs from ONNX's operator specification, compiled and compared with ONNX Runtime.

Nothing here knows what the compiler recognises: nodes are written from the operators' definitions alone, and ONNX
Runtime evaluates each one as it is added, so that a node which it refuses is not in the graph.
"""
