"""The manifest section: what is written is read back, and nothing damaged or foreign gets as far as loading code."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
import tvm

from bnn_compiler import artifact
from bnn_compiler.artifact import check_loadable, decode_manifest, read_manifest, seal
from bnn_compiler.build import build_library
from bnn_compiler.errors import ArtifactError
from bnn_compiler.runtime import load
from bnn_compiler.target import parse_target
from tests.small_relax_modules import many_results


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "model.so"
    build_library(many_results(), parse_target("native"), {"layers": [{"name": "conv1"}], "umlaut": "Schätzung"}, path)
    return path


def refusal(path: Path, content: bytes) -> str:
    """Write ``content`` to ``path``; check that loading refuses it in one line; return the line."""
    path.write_bytes(content)
    with pytest.raises(ArtifactError) as caught:
        load(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def patched_header(content: bytes, offset: int, value: bytes) -> bytes:
    """Return a validly sealed library whose section header holds ``value`` at ``offset``."""
    start = content.index(artifact._MAGIC)
    return seal(content[: start + offset] + value + content[start + offset + len(value) :])


def test_manifest_round_trip(library: Path) -> None:
    manifest = read_manifest(library)
    assert manifest["layers"] == [{"name": "conv1"}]
    assert manifest["umlaut"] == "Schätzung"
    assert manifest["inputs"] == [{"name": "x", "shape": [1, 1024], "dtype": "float32"}]
    assert [entry["shape"] for entry in manifest["outputs"]] == [[10], [10], [1, 1024], [10]]
    assert list(manifest["functions"]) == ["layer_0", "main_by_kernel"]
    native = parse_target("native")
    assert manifest["target"]["text"] == native.text
    assert manifest["target"]["features"] == list(native.features)
    assert manifest["versions"]["tvm"] == tvm.__version__
    assert {"bnnc", "llvm", "linker"} <= set(manifest["versions"])


@pytest.mark.parametrize("kept", [0, 1, 3, 4, 16, 63, 64, 1000, 4096, -4096, -100, -1])
def test_truncated(library: Path, tmp_path: Path, kept: int) -> None:
    message = refusal(tmp_path / "cut.so", library.read_bytes()[:kept])
    assert "compile" in message


def test_flipped_bits(library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    seeded = random.Random(0)
    start = content.index(artifact._MAGIC)
    # Every byte of the ELF header and of the section's header, and a sample of the rest.
    positions = [*range(64), *range(start, start + 64), *(seeded.randrange(len(content)) for _ in range(300))]
    for position in positions:
        damaged = bytearray(content)
        damaged[position] ^= 1 << seeded.randrange(8)
        refusal(tmp_path / "flipped.so", bytes(damaged))


def test_appended_bytes(library: Path, tmp_path: Path) -> None:
    assert "checksum" in refusal(tmp_path / "longer.so", library.read_bytes() + b"\0")


def test_swapped_blocks(library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    swapped = content[:1024] + content[2048:3072] + content[1024:2048] + content[3072:]
    assert swapped != content
    refusal(tmp_path / "swapped.so", swapped)


def test_foreign_files(tmp_path: Path) -> None:
    assert "not a shared library" in refusal(tmp_path / "text.so", b"hello")
    assert "not a shared library" in refusal(tmp_path / "empty.so", b"")
    other_elf = Path(tvm.libinfo.find_libtvm_runtime()).read_bytes()
    assert "no manifest inside" in refusal(tmp_path / "other.so", other_elf)


def test_unreadable_paths(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "absent.so", "No such file"), (tmp_path, "it is a directory")):
        for reader in (read_manifest, load):
            with pytest.raises(ArtifactError, match=words):
                reader(path)


def test_newer_format(library: Path, tmp_path: Path) -> None:
    newer = patched_header(library.read_bytes(), 16, struct.pack("<I", artifact.FORMAT_VERSION + 1))
    assert "newer than this bnnc understands" in refusal(tmp_path / "newer.so", newer)


def test_format_before_compression(library: Path) -> None:
    """Libraries of format 2 have plain JSON, and stay readable."""
    content = library.read_bytes()
    manifest = read_manifest(library)
    text = json.dumps(manifest).encode()
    header = artifact._MAGIC + struct.pack("<I", 2) + bytes(32) + struct.pack("<Q", len(text))
    without = content.replace(artifact._MAGIC, bytes(16))
    assert decode_manifest(seal(without + header + text), "old.so") == manifest


def test_manifest_is_compressed(library: Path) -> None:
    content = library.read_bytes()
    stored = struct.unpack_from("<Q", content, content.index(artifact._MAGIC) + 52)[0]
    assert stored < len(json.dumps(read_manifest(library)).encode()) / 2
    assert b"conv1" not in content


def test_sealed_but_malformed(library: Path, tmp_path: Path) -> None:
    """The digest is right and the content is not: some other program's work, still one line."""
    content = library.read_bytes()
    for length in (0, 5, 1 << 40, (1 << 64) - 1):
        assert "malformed" in refusal(tmp_path / "length.so", patched_header(content, 52, struct.pack("<Q", length)))
    whole = struct.unpack_from("<Q", content, content.index(artifact._MAGIC) + 52)[0]
    for length in (whole - 1, whole + 1):
        assert "malformed" in refusal(tmp_path / "length.so", patched_header(content, 52, struct.pack("<Q", length)))
    not_elf = seal(content[:4] + bytes(60) + content[64:])
    assert "malformed" in refusal(tmp_path / "header.so", not_elf)


@pytest.mark.parametrize("text", ["llvm -mcpu=cortex-a72", "llvm -mcpu=cortex-a9"])
def test_other_machine(library: Path, text: str) -> None:
    manifest = read_manifest(library)
    manifest["target"] = {**manifest["target"], "text": text, "architecture": parse_target(text).architecture}
    if manifest["target"]["architecture"] == parse_target("native").architecture:
        pytest.skip("this machine is of that architecture")
    with pytest.raises(ArtifactError, match=r"compiled for .*this machine is .*--target native"):
        check_loadable(manifest, "model.so", tvm.__version__)


def test_missing_features(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = parse_target("native").features
    if not features:
        pytest.skip("the native target needs no feature that can be missing")
    monkeypatch.setattr("bnn_compiler.cpu_features.host_features", lambda: frozenset(features[1:]))
    assert f"lacks {features[0]}; compile the model again" in refusal(tmp_path / "model.so", library.read_bytes())


def test_other_tvm_version(library: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"compiled with TVM {tvm.__version__}, this is TVM 0\.28.*install"):
        check_loadable(read_manifest(library), "model.so", "0.28.0")


def test_code_is_not_loaded_before_the_checks(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(_path: str, *, keep_module_alive: bool) -> None:
        raise AssertionError("code was loaded")

    monkeypatch.setattr("tvm_ffi.load_module", loaded)
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    refusal(tmp_path / "damaged.so", bytes(content))
    with pytest.raises(AssertionError, match="code was loaded"):
        load(library)


def test_decode_names_its_file(library: Path) -> None:
    assert decode_manifest(library.read_bytes(), "x")["layers"]
    with pytest.raises(ArtifactError, match=r"^in memory: "):
        decode_manifest(b"", "in memory")
