"""What verification found, in sentences: with what the network was compared, and how it differs where it does."""

from __future__ import annotations

from bnn_compiler.report import OwnKindReport, OwnModelReport, OwnOutputReport, Report, VerificationReport

_LARGEST = 1e300
"""Errors from here on stand for what has no size: other integers, NaN or infinity on one side."""

_KINDS = {"ordinary": "", "integers": "integer inputs", "half zeros": "half-zero inputs", "zeros": "zeros"}


def describe_verification(report: Report) -> str:
    """One sentence on what was verified, and with which result."""
    verification = report["verification"]
    if verification is None:
        return "not verified"
    sentence = _describe_comparison(verification)
    if verification["target"] == report["target"]:
        return sentence
    return f"the network, built for this machine, {sentence}; the code for {report['target']!r} itself was not run"


def describe_disagreement(report: Report) -> str | None:
    """What a caller of a library must know: how its results differ from ONNX Runtime's; None if nothing is known."""
    verification = report["verification"]
    if verification is None or verification["own_model"] is None or verification["own_model"]["agrees"]:
        return None
    return _own_differences(verification, verification["own_model"])


def _describe_comparison(verification: VerificationReport) -> str:
    own, checked = verification["own_model"], _checked(verification)
    inputs = f"{verification['inputs']} inputs"
    if own is None:
        return f"agrees with ONNX Runtime on {inputs}: {checked}"
    if own["agrees"] and verification["compared_with"] != "exact_sums":
        return f"agrees with {_peer(own)} on {inputs}: {checked}"
    peer, with_whom = _peer(own), {
        "model": "but for that agrees",
        "standard_form": "but for that agrees",
        "sign_zero_plus": "agrees with ONNX Runtime where that takes Sign(0) as +1, too,",
        "single_precision": "agrees with ONNX Runtime in single precision",
        "exact_sums": "agrees with ONNX Runtime where the sums of its binary layers are exact,",
    }[verification["compared_with"]]  # fmt: skip
    if own["agrees"]:
        return f"outputs agree with {peer}; {with_whom} on {inputs}: {checked}"
    return f"{_own_differences(verification, own)}; {with_whom} on {inputs}: {checked}"


def _own_differences(verification: VerificationReport, own: OwnModelReport) -> str:
    near = "after values within rounding of a threshold, where neither result is wrong"
    reason = {
        "model": near,
        "standard_form": near,
        "sign_zero_plus": "where Sign(0) is taken as +1 (--sign-zero exact keeps ONNX's 0)",
        "single_precision": "where ONNX Runtime rounds to half precision",
        "exact_sums": "where sums of ±α cancel and ONNX Runtime's rounding decides the sign",
    }[verification["compared_with"]]
    if verification["compared_with"] == "exact_sums" and verification["sign_zeros"]:
        reason = f"where Sign(0) is taken as +1, and {reason}"
    return f"differs from {_peer(own)} {_where(own)}, {reason}"


def _where(own: OwnModelReport) -> str:
    """In how much of the outputs: in full for the first kind of inputs that shows it, as shares for the others."""
    differing = [entry for entry in own["by_kind"] if any(output["differing"] for output in entry["outputs"])]
    first, *others = differing
    prefix = "" if first["kind"] == "ordinary" else f"on {_KINDS[first['kind']]} "
    text = prefix + "in " + " and ".join(_share(output) for output in first["outputs"] if output["differing"])
    if not others:
        return text
    shares = (f"{_KINDS[other['kind']]}: {_percent(_most(other))}" for other in others)
    return f"{text} ({', '.join(shares)})"


def _peer(own: OwnModelReport) -> str:
    if own["loaded"]:
        return "ONNX Runtime"
    return f"the model's standard-ONNX form in ONNX Runtime (the file itself was not compared: {own['refusal']})"


def _most(entry: OwnKindReport) -> float:
    return max(output["differing"] for output in entry["outputs"])


def _share(output: OwnOutputReport) -> str:
    size = f", up to {output['max_abs_error']:.2g}" if output["max_abs_error"] < _LARGEST else ""
    return f"{_percent(output['differing'])} of {output['name']}{size}"


def _percent(share: float) -> str:
    percent = 100 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"


def _checked(verification: VerificationReport) -> str:
    """What was compared, and how exactly."""
    layers = verification["layers"]
    exact = sum(layer["exact"] for layer in layers)
    parts = []
    if layers:
        how = [f"{exact} bit for bit"] if exact else []
        how += [f"{len(layers) - exact} within the bound of float32's rounding"] if exact < len(layers) else []
        parts.append(f"{len(layers)} layers alone ({', '.join(how)})")
    if verification["layers_not_compared"]:
        parts.append(f"{len(verification['layers_not_compared'])} layers not alone")
    for output in verification["outputs"]:
        error, tolerance = output["max_abs_error"], output["tolerance"]
        if error == 0:
            parts.append(f"{output['name']} equal")
        elif output["inputs_beyond_tolerance"]:
            beyond = output["inputs_beyond_tolerance"]
            parts.append(f"{output['name']} within {tolerance:.2g} on all but {beyond} inputs")
        else:
            parts.append(f"{output['name']} within {error:.2g} (tolerance {tolerance:.2g})")
    if verification["sign_flips"]:
        parts.append(f"{verification['sign_flips']:,} signs otherwise, by rounding and in what follows from it")
    if verification["decided_in_float64"] is not None:
        decided = verification["decided_in_float64"]
        parts.append(f"float64 has {decided:,} signs and codes within float32's error of a threshold")
    return ", ".join(parts)
