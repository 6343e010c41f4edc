"""What ``compile_model`` returns: the library, its report and, where this machine can run it, the way to run it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bnn_compiler.artifact import decode_manifest, replace_manifest, specs_from_json
from bnn_compiler.atomic_file import atomic_write
from bnn_compiler.errors import ArtifactError
from bnn_compiler.passes.expose_activation_bits import FUNCTION as EXPOSE_FUNCTION
from bnn_compiler.passes.expose_activation_bits import SUFFIX as EXPOSE_SUFFIX
from bnn_compiler.report import Report, VerificationReport
from bnn_compiler.runtime import CompiledModel, load
from bnn_compiler.tensor_spec import TensorSpec

Array = npt.NDArray[Any]


class CompiledNetwork:
    """A compiled network in memory; ``export`` writes it, ``report`` says what was decided and verified."""

    def __init__(self, library: Path, report: Report, *, runs_here: bool) -> None:
        """Read ``library``, which may be deleted afterwards."""
        self._library = library.read_bytes()
        self._manifest = decode_manifest(self._library, str(library))
        self._model: CompiledModel | None = load(library) if runs_here else None
        self.report = report

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The network's inputs, in the model's order."""
        return specs_from_json(self._manifest["inputs"])

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The network's outputs, in the model's order."""
        return specs_from_json(self._manifest["outputs"])

    @property
    def model(self) -> CompiledModel:
        """The loaded library.

        Raises:
            ArtifactError: the network was compiled for another kind of machine.
        """
        if self._model is None:
            target = self._manifest["target"]["text"]
            raise ArtifactError(
                f"compiled for {target!r}, which this machine cannot run; export it, or use target='native'"
            )
        return self._model

    def run(self, feeds: Mapping[str, Array] | Array, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """Run the network once; see ``CompiledModel.run``."""
        return self.model.run(feeds, out)

    def run_function(self, name: str, value: Array) -> Array:
        """Run one binary layer (``function`` in the report) alone, on its float32 input."""
        return self.model.run_function(name, [np.ascontiguousarray(value)])[0]

    def activation_bits(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Packed activations of the binary layers as ``run`` computes them on ``feeds``, in the order of the network.

        The key is the function of the first layer that takes them; uint64, in the layout of the layer's kernel. Empty
        where the library does not show them (``passes.ExposeActivationBits``).
        """
        functions = self.model.functions
        if EXPOSE_FUNCTION not in functions:
            return {}
        layers = sorted(
            (
                name.removesuffix(EXPOSE_SUFFIX)
                for name in functions
                if name.startswith("layer_") and name.endswith(EXPOSE_SUFFIX)
            ),
            key=lambda name: int(name.removeprefix("layer_")),
        )
        arrays = [np.ascontiguousarray(feeds[spec.name]) for spec in self.inputs]
        return dict(zip(layers, self.model.run_function(EXPOSE_FUNCTION, arrays), strict=True))

    def record(self, verification: VerificationReport) -> None:
        """Enter what verification found, in the report and in the library that ``export`` writes."""
        self.report["verification"] = verification
        self._manifest = {**self._manifest, "report": {**self._manifest["report"], "verification": verification}}
        self._library = replace_manifest(self._library, self._manifest)

    def export(self, path: str | Path) -> None:
        """Write the shared library to ``path``, whole or not at all.

        Raises:
            ArtifactError: ``path`` cannot be written.
        """
        with atomic_write(Path(path), mode=0o755) as stream:
            stream.write(self._library)
