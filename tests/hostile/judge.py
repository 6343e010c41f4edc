"""What becomes of one file in a process of its own (``tests.isolation``)."""

from __future__ import annotations

from pathlib import Path

from bnn_compiler.driver import inspect_model
from bnn_compiler.errors import BnncError
from bnn_compiler.frontend import import_onnx

LONGEST_LINE = 1500


def judge(payload: bytes) -> str:
    """``accepted``, ``refused: …``, or a finding that begins with ``!``.

    The payload is ``p`` and a path that is imported, ``f`` and a file's bytes that are imported, or ``i`` and bytes
    that are inspected.
    """
    kind, rest = payload[:1], payload[1:]
    try:
        if kind == b"i":
            inspect_model(rest)
        else:
            import_onnx(rest if kind == b"f" else Path(rest.decode()))
    except BnncError as error:
        message = str(error)
        fine = message.isprintable() and len(message) <= LONGEST_LINE
        return f"refused: {message}" if fine else f"! a message of {len(message)} characters"
    except BaseException as error:
        return f"! {type(error).__name__}: {str(error)[:200]}"
    return "accepted"
