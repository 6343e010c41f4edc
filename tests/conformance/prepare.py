"""What a case needs of ONNX Runtime alone, in a process without the compiler."""

from __future__ import annotations

import json
import warnings

import onnx

from .generate import Case, random_case
from .judge import Judge
from .one_node import Array, RejectedNodeError


def prepare_bytes(payload: bytes) -> str:
    """For ``IsolatedWorker``: make the case and run its references; its bytes in hexadecimal digits.

    Where this process does not survive, ONNX Runtime is to blame for what happened to another one.
    """
    case = case_of(payload)
    try:
        judge = Judge(onnx.load_from_string(case.reference))
    except RejectedNodeError:
        return case.to_bytes().hex()
    for feed in case.feeds.values():
        runs(judge, feed)
    return case.to_bytes().hex()


def case_of(payload: bytes) -> Case:
    """A pickled case, or that of the arguments of ``random_case`` in JSON."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's, about overflowing constants
        return random_case(**json.loads(payload)) if payload[:1] == b"{" else Case.from_bytes(payload)


def runs(judge: Judge, feed: dict[str, Array]) -> bool:
    """Whether ONNX Runtime runs this input: an index may lie outside its tensor."""
    try:
        judge.expected(feed)
    except RejectedNodeError:
        return False
    return True
