"""What becomes of a damaged model: accepted, refused in one line, or a finding."""

from __future__ import annotations

import bnn_compiler
from bnn_compiler.errors import BnncError, VerificationError
from bnn_compiler.frontend import import_onnx

MAX_MACS = 20_000_000
"""Models that became larger are not compiled: verification in ONNX Runtime would take minutes, rightly."""


def judge(payload: bytes) -> str:
    """In the worker: ``ok``, ``refused``, or a finding that starts with ``!``.

    The first byte says how far to go: ``c`` compiles and verifies, ``i`` reports only (import and partition).
    """
    data = payload[1:]
    try:
        import_onnx(data)
        report = bnn_compiler.inspect_model(data)
        if payload[:1] == b"c" and sum(layer["macs"] for layer in report["layers"]) <= MAX_MACS:
            bnn_compiler.compile_model(data)
            return "compiled"
    except VerificationError as error:
        return f"! VerificationError: {error}"
    except BnncError as error:
        message = str(error)
        return "refused" if message.isprintable() and len(message) < 1500 else f"! not one line: {message!r}"
    except Exception as error:  # whatever else is raised is a finding
        return f"! {type(error).__name__}: {' '.join(str(error).split())[-300:]}"
    return "accepted"
