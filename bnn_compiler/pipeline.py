"""The order of the passes. This list is the architecture: each phase is one paragraph of docs/architecture.md."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import tvm

from bnn_compiler.kernels.kernel_choice import ChoiceOptions
from bnn_compiler.layers import BinaryLayer
from bnn_compiler.options import SignZero
from bnn_compiler.passes import (
    CompareBeforeSigmoid,
    DecideSignZeros,
    ExposeActivationBits,
    FlattenConv3d,
    FoldBatchNorm,
    FoldBroadcastConstants,
    LiftDerivedConstants,
    LowerBinaryOps,
    NameVariables,
    NarrowDoubleProducts,
    PartitionBinaryOps,
    PlanLayouts,
    float_pipeline,
)
from bnn_compiler.recognition.sign_zeros import Checked

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class Phase:
    """A few passes with one purpose; ``--dump-dir`` writes the module after each phase."""

    name: str
    passes: tuple[tvm.transform.Pass, ...]


def phases(
    target: tvm.target.Target,
    *,
    choice: ChoiceOptions,
    sign_zero: SignZero = "auto",
    exact_signs: Collection[str] = (),
    checked: Checked = "ask",
    layers: list[BinaryLayer] | None = None,
) -> tuple[Phase, ...]:
    """The phases between the front end and code generation; the lowered layers are appended to ``layers``.

    ``checked`` is what becomes of signs of the input (``recognition/sign_zeros``); where they are kept beside another
    form of the network (``join_exact_form``), tables are stored as they are used: that form derives them.
    """
    return (
        # Variables take the names of their ONNX tensors, by which everything behind finds them.
        # Batch-norm becomes multiply-add, so that later phases see one spelling of a per-channel affine map.
        # 3-D convolutions become 2-D ones, and binary products of doubles products of floats: those have kernels.
        # Transposes between them that undo each other go, so that recognition sees signs and pads in NCHW.
        # What exporters expanded or left behind is undone: constants of full maps, comparisons of sigmoids.
        # Where binary layers read a Sign, it is decided what becomes of 0, and written into the graph.
        Phase(
            "normalise",
            (
                NameVariables(),
                FoldBatchNorm(),
                FoldBroadcastConstants(),
                CompareBeforeSigmoid(),
                DecideSignZeros(sign_zero, exact_signs, checked),
                FlattenConv3d(),
                NarrowDoubleProducts(),
                PlanLayouts(),
            ),
        ),
        # Binary layers become composites that still carry their float semantics; all others get a reason.
        Phase("partition", (PartitionBinaryOps(algorithm=choice.algorithm, sign_zero=sign_zero),)),
        # Composites become calls of kernels, popcount or bit-sliced along a channel tree. Each layer is also a
        # function of its own, for verification. Tables that kernels make of smaller ones are made once, at load.
        Phase(
            "lower",
            (LowerBinaryOps(target, choice=choice, layers=layers, derive=checked == "ask"), LiftDerivedConstants()),
        ),
        # The float rest gets register-tiled kernels, fused element-wise operators and schedules.
        Phase("float", tuple(float_pipeline(target))),
        # Two kinds of functions that only verification calls: it counts the signs that came out differently.
        Phase("expose", (ExposeActivationBits(),)),
    )


def run_phases(
    module: tvm.IRModule, todo: tuple[Phase, ...], *, dump_dir: Path | None = None, progress: Progress | None = None
) -> tvm.IRModule:
    """Apply ``todo`` in order, writing ``NN-name.py`` (TVMScript) into ``dump_dir`` after each phase."""
    if dump_dir is not None:
        dump_dir.mkdir(parents=True, exist_ok=True)
        _dump(module, dump_dir / "00-import.py")
    for number, phase in enumerate(todo, start=1):
        if progress is not None:
            progress(phase.name, (number - 1) / len(todo))
        module = tvm.transform.Sequential(list(phase.passes))(module)
        if dump_dir is not None:
            _dump(module, dump_dir / f"{number:02d}-{phase.name}.py")
    return module


def _dump(module: tvm.IRModule, path: Path) -> None:
    path.write_text(module.script(show_meta=False) + "\n", encoding="utf-8")
