"""Libraries for ARM: they build and link here, and a user-mode emulator runs the AArch64 ones.

Running needs ``qemu-aarch64`` with a C library to emulate against, ziglang to compile the driver, and TVM's AArch64
wheels unpacked into one folder that ``$BNNC_ARM64_RUNTIME`` names; nothing is downloaded here, what is absent is
skipped. (There is no armv7 wheel of TVM, so those libraries are linked and inspected only.)
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tvm
import tvm_ffi.libinfo
from elftools.elf.elffile import ELFFile

from bnn_compiler.artifact import read_manifest
from bnn_compiler.build import build_library
from bnn_compiler.driver import compile_model
from bnn_compiler.errors import ArtifactError, ToolchainError
from bnn_compiler.linker import find_linker
from bnn_compiler.runtime import load
from bnn_compiler.target import parse_target
from tests.conftest import ModelFinder
from tests.small_relax_modules import FEATURES, elementwise, many_results, many_results_reference

CORTEX_A72 = "llvm -mcpu=cortex-a72"
CORTEX_A9 = "llvm -mcpu=cortex-a9"
SYSROOT = Path(os.environ.get("BNNC_ARM64_SYSROOT", "/usr/aarch64-linux-gnu"))
Emulator = Callable[[Path, Sequence[npt.NDArray[Any]], Sequence[tuple[int, ...]]], list[npt.NDArray[np.float32]]]


def need_linker(target: str) -> None:
    try:
        find_linker(parse_target(target))
    except ToolchainError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Emulator:
    """Runs ``main`` of an AArch64 library under qemu: (library, inputs, output shapes) -> float32 outputs."""
    emulator = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    if emulator is None:
        pytest.skip("no qemu-aarch64: apt-get install qemu-user")
    if not (SYSROOT / "lib" / "libstdc++.so.6").exists():
        pytest.skip(f"no AArch64 C++ library under {SYSROOT}: apt-get install libstdc++6-arm64-cross")
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("no ziglang to compile the driver: pip install ziglang")
    runtime = Path(os.environ.get("BNNC_ARM64_RUNTIME", "absent"))
    folders = [runtime / "tvm_ffi" / "lib", runtime / "tvm" / "lib"]
    if not (folders[0] / "libtvm_ffi.so").exists() or not (folders[1] / "libtvm_runtime.so").exists():
        pytest.skip("BNNC_ARM64_RUNTIME does not name a folder with TVM's AArch64 wheels unpacked")
    driver = tmp_path_factory.mktemp("driver") / "arm_driver"
    _compile_driver(driver, folders)
    library_path = ":".join(map(str, folders))

    def run(
        library: Path, inputs: Sequence[npt.NDArray[Any]], shapes: Sequence[tuple[int, ...]]
    ) -> list[npt.NDArray[np.float32]]:
        folder = tmp_path_factory.mktemp("call")
        arguments = []
        for index, array in enumerate(inputs):
            array.tofile(folder / f"in{index}")
            arguments.append(f"in:{array.dtype}:{'x'.join(map(str, array.shape))}:{folder / f'in{index}'}")
        for index, shape in enumerate(shapes):
            arguments.append(f"out:float32:{'x'.join(map(str, shape))}:{folder / f'out{index}'}")
        for spec in read_manifest(library).get("derivation", {"outputs": []})["outputs"]:
            arguments.append(f"derived:{spec['dtype']}:{'x'.join(map(str, spec['shape']))}:")
        command = [emulator, "-L", str(SYSROOT), "-E", f"LD_LIBRARY_PATH={library_path}", str(driver)]
        result = subprocess.run(
            [*command, str(library), "main", *arguments], capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        return [np.fromfile(folder / f"out{index}", np.float32).reshape(shape) for index, shape in enumerate(shapes)]

    return run


def _compile_driver(driver: Path, folders: Sequence[Path]) -> None:
    headers = Path(tvm_ffi.libinfo.find_include_path())
    subprocess.run(
        [
            *(sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-gnu.2.28", "-std=c++17", "-O1"),
            *(f"-I{headers}", f"-I{tvm_ffi.libinfo.find_dlpack_include_path()}"),
            *(str(Path(__file__).with_name("arm_driver.cc")), "-o", str(driver)),
            *(f"-L{folder}" for folder in folders),
            # The runtime registers its functions when it is loaded; nothing refers to it by name.
            *("-Wl,--no-as-needed", "-ltvm_ffi", "-ltvm_runtime", "-Wl,--allow-shlib-undefined"),
        ],
        check=True,
    )


@pytest.mark.parametrize(("target", "machine", "bits"), [(CORTEX_A72, "EM_AARCH64", 64), (CORTEX_A9, "EM_ARM", 32)])
def test_builds_and_links(tmp_path: Path, target: str, machine: str, bits: int) -> None:
    need_linker(target)
    library = tmp_path / "model.so"
    build_library(many_results(), parse_target(target), {}, library)
    with library.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf.header["e_machine"] == machine
        assert elf.elfclass == bits
        if machine == "EM_ARM":
            assert elf.header["e_flags"] & 0x400  # EF_ARM_ABI_FLOAT_HARD
        exported = {symbol.name for symbol in elf.get_section_by_name(".dynsym").iter_symbols()}
    assert {"__tvm_ffi_matmul", "__tvm_ffi__library_bin"} <= exported
    assert read_manifest(library)["target"]["text"] == parse_target(target).text
    if not parse_target(target).is_host:
        with pytest.raises(ArtifactError, match="compiled for "):
            load(library)


@pytest.mark.parametrize("target", [CORTEX_A72, CORTEX_A9])
def test_network_builds_and_links(tmp_path: Path, network: ModelFinder, target: str) -> None:
    need_linker(target)
    compile_model(network("lenet_mnist"), target=target).export(tmp_path / "lenet.so")
    assert read_manifest(tmp_path / "lenet.so")["target"]["cpu"] == parse_target(target).cpu


def test_exact_kernel_runs(tmp_path: Path, emulated: Emulator) -> None:
    need_linker(CORTEX_A72)
    library = tmp_path / "add.so"
    build_library(elementwise(), parse_target(CORTEX_A72), {}, library)
    x, y = np.random.default_rng(3).standard_normal((2, 1, FEATURES)).astype(np.float32)
    (result,) = emulated(library, [x, y], [(1, FEATURES)])
    np.testing.assert_array_equal(result, x + y)


def test_all_kinds_of_results(tmp_path: Path, emulated: Emulator) -> None:
    need_linker(CORTEX_A72)
    library = tmp_path / "model.so"
    build_library(many_results(), parse_target(CORTEX_A72), {}, library)
    x = np.random.default_rng(4).standard_normal((1, FEATURES)).astype(np.float32)
    results = emulated(library, [x], [(10,), (10,), (1, FEATURES), (10,)])
    for result, expected in zip(results, many_results_reference(x), strict=True):
        # 1024 float32 products summed in another order than NumPy's.
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def test_lenet_agrees_with_onnx_runtime(tmp_path: Path, network: ModelFinder, emulated: Emulator) -> None:
    need_linker(CORTEX_A72)
    model = network("lenet_mnist")
    library = tmp_path / "lenet.so"
    compile_model(model, target=CORTEX_A72).export(library)
    with np.load(model.with_suffix(".npz")) as arrays:
        images, scores = arrays["in_input"], arrays["out_output"]
    for image, expected in zip(images, scores, strict=True):
        (result,) = emulated(library, [image[np.newaxis]], [(1, 10)])
        # The float stem and classifier sum up to a few thousand terms in another order; scores are of order 10.
        np.testing.assert_allclose(result[0], expected, rtol=1e-4, atol=1e-4)


def test_constants_are_derived_on_the_target(tmp_path: Path, digits: Path, emulated: Emulator) -> None:
    need_linker(CORTEX_A72)
    compiled = compile_model(digits, target=CORTEX_A72, algorithm="bitsliced")
    compiled.export(tmp_path / "digits.so")
    manifest = read_manifest(tmp_path / "digits.so")
    assert manifest["derived"] == list(range(len(manifest["derivation"]["outputs"]))) != []
    here = compile_model(digits, algorithm="popcount", verify=False)
    image = np.random.default_rng(5).random((1, 1, 8, 8)).astype(np.float32)
    (result,) = emulated(tmp_path / "digits.so", [image], [(1, 10)])
    # The float stem and classifier sum up to 576 terms in another order; scores are of order 10.
    np.testing.assert_allclose(result, here.run(image)["score"], rtol=1e-4, atol=1e-4)


def test_driver_headers_match_the_runtime() -> None:
    """The driver is compiled against this machine's headers: the AArch64 wheels must be of the same version."""
    runtime = os.environ.get("BNNC_ARM64_RUNTIME")
    if runtime is None:
        pytest.skip("BNNC_ARM64_RUNTIME is not set")
    assert list(Path(runtime).glob(f"apache_tvm-{tvm.__version__}.dist-info"))
