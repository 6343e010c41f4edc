"""The model as the user gave it, in ONNX Runtime as its users run it, and how far the compiled network is from it.

ONNX Runtime's options are the defaults, but for the number of threads: with one, results repeat on any machine. Nothing
in the file is changed. Where ONNX Runtime cannot load it (operators of other domains, an operator set that is too old
or too new for it), the front end's form of it in standard ONNX stands in, and the reason is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import ModelProto

from bnn_compiler.errors import ModelError
from bnn_compiler.report import ComparedWith, OwnModelReport
from bnn_compiler.verification.end_to_end import EndToEnd, OutputCheck
from bnn_compiler.verification.reference import Reference
from bnn_compiler.verification.sample_inputs import Kind


class OwnModel:
    """The session, and why it is not of the user's own file where it is not."""

    def __init__(self, original: ModelProto | None, standard_form: ModelProto) -> None:
        """Load ``original``, or else ``standard_form``.

        Raises:
            ModelError: ONNX Runtime loads neither.
        """
        self.name: ComparedWith = "standard_form"
        self.refusal = ""
        if original is not None:
            try:
                self.reference = Reference(original)
            except ModelError as error:
                self.refusal = str(error)
            else:
                self.name = "model"
                return
        self.reference = Reference(standard_form)


@dataclass(frozen=True)
class OwnComparison:
    """The compiled network beside the user's own model, by kind of input.

    ``refusal`` is empty, or says why ONNX Runtime cannot load the file: the comparison is then with the front end's
    standard form of it.
    """

    refusal: str
    kinds: tuple[tuple[Kind, int, tuple[OutputCheck, ...]], ...]

    @property
    def agrees(self) -> bool:
        """Whether every output is within its tolerance on every input."""
        return not any(output.beyond_tolerance for _, _, outputs in self.kinds for output in outputs)

    def to_report(self) -> OwnModelReport:
        """Return the ``own_model`` entry of the report."""
        return {
            "loaded": not self.refusal,
            "refusal": self.refusal,
            "agrees": self.agrees,
            "by_kind": [
                {"kind": kind, "inputs": number, "outputs": [output.to_own_report() for output in outputs]}
                for kind, number, outputs in self.kinds
            ],
        }


def compare_by_kind(own: OwnModel, compared: EndToEnd, kinds: Sequence[Kind]) -> OwnComparison:
    """The comparison from what ``compared`` collected beside ``own``, on inputs of ``kinds``."""
    each = tuple((kind, kinds.count(kind), compared.outputs(kind)) for kind in dict.fromkeys(kinds))
    return OwnComparison(own.refusal, each)
