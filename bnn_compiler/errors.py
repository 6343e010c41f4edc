"""Every error a user can cause, under one root.

The command line prints an error's text as one line and exits with its ``exit_status``: 1 when the model or the
environment is refused, 2 when the call itself is wrong. A message names what was found, what was expected and the way
out.
"""

from __future__ import annotations


class BnncError(Exception):
    """Root of all errors that are not bugs of this project."""

    exit_status = 1


class CacheWarning(RuntimeWarning):
    """Something cannot be kept between runs, or was kept and is of no use: that costs time, not results."""


class ModelError(BnncError):
    """The model file is unreadable, invalid, or contradicts itself."""


class UnsupportedOperatorError(ModelError):
    """The model is valid but holds an operator (or a form of one) that cannot be compiled."""


class TargetError(BnncError):
    """The target text is not understood, or names a CPU that LLVM does not know."""

    exit_status = 2


class UsageError(BnncError):
    """An option or an argument contradicts the model or another option."""

    exit_status = 2


class OpenShapeError(UsageError):
    """The model leaves a dimension open that no option gives."""


class FeedError(BnncError):
    """Arrays handed to ``run`` do not fit the model's inputs (name, shape, dtype)."""


class ToolchainError(BnncError):
    """No linker, or the linker failed."""


class ScratchError(BnncError):
    """No folder for temporary files can be made."""


class ArtifactError(BnncError):
    """A compiled library cannot be used here: corrupt, other version, other architecture, missing CPU features."""


class VerificationError(BnncError):
    """The compiled network disagrees with ONNX Runtime."""
