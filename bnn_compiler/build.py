"""From a lowered Relax module to one shared library that carries its code, its constants and its manifest.

The same module, target and manifest give the same bytes with the same versions of TVM and the linker: object files
have fixed names and hold no paths, and TVM numbers its symbols in the order of the module.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tvm
from tvm import IRModule, relax, tirx
from tvm.target import codegen

from bnn_compiler.artifact import SECTION_NAME, encode_section, seal, spec_to_json
from bnn_compiler.atomic_file import atomic_write, check_writable
from bnn_compiler.code_generation import LIBRARY_PIPELINE, code_generation, register_pipeline
from bnn_compiler.errors import ArtifactError
from bnn_compiler.linker import Linker, find_linker, link_shared
from bnn_compiler.passes.decide_sign_zeros import SEES_ZEROS
from bnn_compiler.passes.drop_repeated_checks import DropRepeatedChecks
from bnn_compiler.passes.join_exact_form import EXACT
from bnn_compiler.passes.kernel_bodies import CALLS_BODIES_ATTR
from bnn_compiler.passes.lift_derived_constants import FUNCTION as DERIVATION
from bnn_compiler.passes.lift_derived_constants import derived_of
from bnn_compiler.passes.relax_buffer_alignment import RelaxBufferAlignment
from bnn_compiler.passes.return_through_parameters import ReturnThroughParameters
from bnn_compiler.passes.run_in_one_call import BY_KERNEL, RunInOneCall, host_function, memory_report
from bnn_compiler.passes.share_checks import DropOwnChecks, ShareChecks
from bnn_compiler.passes.split_kernels import SplitKernels
from bnn_compiler.report import MemoryReport
from bnn_compiler.scratch_folder import scratch_folder
from bnn_compiler.target import CompileTarget
from bnn_compiler.tensor_spec import TensorSpec

#: Bytes of code, about, in a library of ordinary size.
_CODE = 2**19
#: Of what only calls kernels (``_compile_callers``).
_CALLERS_PIPELINE = register_pipeline("bnnc.callers", [DropOwnChecks()])


class FormsNotJoinedError(Exception):
    """``main`` is no straight line of kernels (``RunInOneCall``), so that there is no place to choose a form in."""


def build_passes() -> tvm.transform.Sequential:
    """Return the passes between lowered Relax (``call_tir`` and PrimFuncs) and TVM's virtual machine."""
    return tvm.transform.Sequential(
        [
            # Whatever operator an earlier pass left over.
            relax.transform.LegalizeOps(),
            # Kernels called on explicitly allocated buffers ...
            relax.transform.RewriteDataflowReshape(),
            relax.transform.ToNonDataflow(),
            relax.transform.RemovePurityChecking(),
            relax.transform.CallTIRRewrite(),
            # ... the last of which belong to the caller, at any address ...
            ReturnThroughParameters(),
            RelaxBufferAlignment(),
            relax.transform.AttachGlobalSymbol(),
            # ... with the code of equal kernels once ...
            SplitKernels(),
            # ... and main's called from one function, on memory planned ahead. The others share memory, too.
            RunInOneCall(),
            relax.transform.StaticPlanBlockMemory(),
            relax.transform.LowerAllocTensor(),
            relax.transform.KillAfterLastUse(),
            relax.transform.LowerRuntimeBuiltin(),
            relax.transform.ComputePrimValue(),
            relax.transform.VMShapeLower(),
            DropRepeatedChecks(),
        ],
        name="bnnc.build",
    )


def build_library(
    module: IRModule, target: CompileTarget, manifest: Mapping[str, Any], output: Path
) -> MemoryReport | None:
    """Compile ``module`` for ``target`` and write the library to ``output``, whole or not at all.

    ``manifest`` may give ``inputs`` and ``outputs`` (lists of name, shape, dtype) for ``main`` where names differ from
    the Relax parameters'; ``target``, ``functions``, ``versions`` and, where constants are derived at load,
    ``derivation`` and ``derived`` (see ``artifact``) are added here. Every other key is kept.

    Returns the memory that a run takes, also added to the manifest's ``report`` where it has one; None where ``main``
    has parts whose memory the virtual machine plans (control flow, functions of the runtime).

    Raises:
        ArtifactError: ``output`` cannot be written.
        FormsNotJoinedError: the module has two forms of the network, and ``main`` cannot choose.
        ToolchainError: no linker, or it failed.
    """
    check_writable(output)
    linker = find_linker(target)
    with target.tvm_target, code_generation():
        lowered = build_passes()(module)
        if EXACT in {variable.name_hint for variable in lowered.get_global_vars()}:
            raise FormsNotJoinedError
        memory = memory_report(lowered)
        section = encode_section(_complete_manifest(module, lowered, target, _with_memory(manifest, memory), linker))
        executable = relax.build(
            _compile_callers(lowered, target),
            target=target.tvm_target,
            relax_pipeline=None,
            tir_pipeline=LIBRARY_PIPELINE,
        )
    try:
        with scratch_folder() as directory:
            _check_room(directory, 0 if memory is None else memory["constants_bytes"])
            library = _link(executable, section, linker, directory)
    except OSError as error:
        raise ArtifactError(
            f"{output}: cannot be built in {tempfile.gettempdir()}: {error.strerror or error}"
        ) from error
    sealed = seal(library)
    with atomic_write(output, mode=0o755) as stream:
        stream.write(sealed)
    return memory


def _with_memory(manifest: Mapping[str, Any], memory: MemoryReport | None) -> Mapping[str, Any]:
    if "report" not in manifest:
        return manifest
    return {**manifest, "report": {**manifest["report"], "memory": memory}}


def _compile_callers(module: IRModule, target: CompileTarget) -> IRModule:
    """Compile what only calls kernels (``SplitKernels``, ``RunInOneCall``), if anything, to an object file of its own.

    TVM tells LLVM that buffers of different names never overlap, which holds inside a kernel. In one object file with
    the kernels LLVM would inline several of them into ``main_kernels``, where they name the same memory differently;
    and it would inline kernels into their entries, so that their code would be there twice.
    """
    callers = {
        variable: function
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and CALLS_BODIES_ATTR in function.attrs
    }
    if not callers:
        return module
    sharing = tvm.transform.Sequential([ShareChecks()])(IRModule(callers))
    library = tvm.tirx.build(sharing, target=target.tvm_target, pipeline=_CALLERS_PIPELINE)
    rest = IRModule({variable: other for variable, other in module.functions_items() if variable not in callers})
    return rest.with_attrs({**(module.attrs or {}), "external_mods": [library]})


def _check_room(directory: Path, constants: int) -> None:
    """LLVM ends the process where it cannot write an object file.

    Raises:
        ArtifactError: there is no room for the object files, the library, and a copy.
    """
    needed, free = 3 * (constants + _CODE), shutil.disk_usage(directory).free
    if free < needed:
        raise ArtifactError(
            f"no room in {tempfile.gettempdir()}: about {needed:,} bytes are needed, {free:,} are free; "
            "name a folder with room in TMPDIR"
        )


def _link(executable: tvm.runtime.Executable, section: bytes, linker: Linker, directory: Path) -> bytes:
    (directory / "manifest.bin").write_bytes(section)
    assembly = directory / "manifest.s"
    # `"",%progbits`: kept in the file, not mapped into memory. `%`, because `@` starts a comment on ARM.
    assembly.write_text(
        f'.section {SECTION_NAME},"",%progbits\n.incbin "manifest.bin"\n.section .note.GNU-stack,"",%progbits\n',
        encoding="ascii",
    )
    library = directory / "library.so"

    def link(_output: str, objects: Iterable[str]) -> None:
        link_shared(linker, sorted(Path(name) for name in objects), library)

    executable.export_library(str(library), fcompile=link, addons=[str(assembly)], workspace_dir=str(directory))
    return library.read_bytes()


def _complete_manifest(
    module: IRModule, lowered: IRModule, target: CompileTarget, manifest: Mapping[str, Any], linker: Linker
) -> dict[str, Any]:
    functions = {
        str(global_var.name_hint): _signature(function)
        for global_var, function in module.functions_items()
        if isinstance(function, relax.Function) and "global_symbol" in function.attrs
    }
    for part in (SEES_ZEROS, EXACT):  # of main (``RunInOneCall``)
        functions.pop(part, None)
    main = functions.pop("main")
    if host_function(lowered) is not None:
        functions[BY_KERNEL] = main
    derivation = functions.pop(DERIVATION, None)
    complete = {**main, **manifest}
    for side in ("inputs", "outputs"):
        declared = [(list(entry["shape"]), entry["dtype"]) for entry in complete[side]]
        actual = [(entry["shape"], entry["dtype"]) for entry in main[side]]
        assert declared == actual, f"manifest {side} {declared} are not those of main: {actual}"
    complete["functions"] = functions
    if derivation is not None:
        complete["derivation"] = {"function": DERIVATION, "outputs": derivation["outputs"]}
    complete["target"] = {
        "text": target.text,
        "architecture": target.architecture,
        "triple": target.triple,
        "cpu": target.cpu,
        "features": list(target.features),
    }
    complete["versions"] = {
        **manifest.get("versions", {}),
        "bnnc": _own_version(),
        "tvm": tvm.__version__,
        "llvm": str(codegen.llvm_version_major()),
        "linker": linker.version,
    }
    return complete


def _signature(function: relax.Function) -> dict[str, list[Any]]:
    results = _leaf_types(function.ret_ty)
    derived = list(derived_of(function))
    inputs = function.params[: len(function.params) - len(derived)]
    signature: dict[str, list[Any]] = {
        "inputs": [_tensor(str(parameter.name), parameter.ty) for parameter in inputs],
        "outputs": [_tensor(f"output_{index}", result) for index, result in enumerate(results)],
    }
    return {**signature, "derived": derived} if derived else signature


def _leaf_types(result: relax.Type) -> list[relax.TensorType]:
    if isinstance(result, relax.TupleType):
        return [leaf for field in result.fields for leaf in _leaf_types(field)]
    return [result]


def _tensor(name: str, tensor_type: relax.TensorType) -> dict[str, Any]:
    return spec_to_json(TensorSpec(name, tuple(int(extent) for extent in tensor_type.shape), str(tensor_type.dtype)))


def _own_version() -> str:
    try:
        return importlib.metadata.version("bnn-compiler")
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"
