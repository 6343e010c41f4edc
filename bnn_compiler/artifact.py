"""The manifest inside a compiled library: how it is laid out, written, checked and read.

A compiled network is one ELF shared library. Its section ``.bnnc.manifest`` holds

    offset  size  content
    0       16    magic
    16      4     format version, little endian (as all numbers)
    20      32    SHA-256 of the whole file with these 32 bytes zero
    52      8     length n of what follows
    60      n     JSON, UTF-8, keys sorted; compressed as RFC 1950 says (zlib)

The code is for TVM's virtual machine, whose functions take ``inputs``, then buffers for ``outputs``, then what is
derived at load: where the manifest has a ``derivation``, whoever loads the library calls that ``function`` once, with a
buffer for each of its ``outputs``, and hands to every function, after everything else, those buffers whose numbers its
entry lists in ``derived`` (of ``functions``, or of the manifest itself for ``main``).

Older formats are read, too: format 2 had its JSON uncompressed, format 1 no derivation either.

``report`` is the report (docs/report.md). What verification found is added to a library that is already linked: the old
manifest's place is filled with zeros where the new one does not fit in.

``kernels`` lists the kernel calls of ``main`` with the ONNX nodes that each computes (``profiling/kernel_table.py``);
nothing but profiles needs it.

The section is found by its magic and the digest is compared before anything else is believed, so a damaged file is
refused before its ELF headers are parsed, let alone its code loaded. Reading needs neither TVM nor LLVM.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from bnn_compiler.cpu_features import host_architecture, missing_features
from bnn_compiler.errors import ArtifactError
from bnn_compiler.plain_text import plain
from bnn_compiler.regular_file import GIB, UnreadableFileError, read_regular, shown
from bnn_compiler.tensor_spec import TensorSpec

Manifest = dict[str, Any]

FORMAT_VERSION = 3
LARGEST_LIBRARY = 4 * GIB
"""Bytes of a file that is read: constants are at most those of a model, 2 GiB, beside code."""
SECTION_NAME = ".bnnc.manifest"
_FIRST_COMPRESSED = 3
_MAGIC = b"\x89bnnc\r\n\x1a\nSECT\x00\xf3\xa7"
_HEADER = struct.Struct("<16sI32sQ")
_DIGEST = slice(20, 52)
_ELF_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_ARM": "arm"}


def encode_section(manifest: Mapping[str, Any]) -> bytes:
    """Return the section's content for ``manifest``, with a zero digest (see ``seal``)."""
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    stored = zlib.compress(text, level=9)
    return _HEADER.pack(_MAGIC, FORMAT_VERSION, bytes(32), len(stored)) + stored


def seal(library: bytes) -> bytes:
    """Return ``library`` with the digest of its content filled in."""
    start = _find_section(library)
    if start is None:
        raise AssertionError("the linker dropped the manifest section or repeated it")
    sealed = bytearray(library)
    sealed[start + _DIGEST.start : start + _DIGEST.stop] = _digest(library, start)
    return bytes(sealed)


def replace_manifest(library: bytes, manifest: Mapping[str, Any]) -> bytes:
    """Return ``library`` with another manifest, sealed; at its end where there is no room in the old one's place."""
    elf = ELFFile(BytesIO(library))
    index, section = next(
        (number, found) for number, found in enumerate(elf.iter_sections()) if found.name == SECTION_NAME
    )
    start, size = section["sh_offset"], section["sh_size"]
    content = encode_section(manifest)
    edited = bytearray(library)
    edited[start : start + size] = bytes(size)
    if len(content) > size:
        start = len(edited)
        edited += bytes(len(content))
    edited[start : start + len(content)] = content
    # sh_offset and sh_size follow each other in a section's header.
    header = elf.header["e_shoff"] + index * elf.header["e_shentsize"]
    place, form = (header + 24, "<QQ") if elf.elfclass == 64 else (header + 16, "<II")
    struct.pack_into(form, edited, place, start, len(content))
    return seal(bytes(edited))


def read_manifest(path: str | Path) -> Manifest:
    """Read the manifest of the compiled library at ``path``, of any target, without loading its code.

    Raises:
        ArtifactError: the file cannot be read, is not a compiled network, is damaged, or is of a newer format.
    """
    try:
        library = read_regular(path, LARGEST_LIBRARY)
    except UnreadableFileError as error:
        raise ArtifactError(f"{shown(path)}: cannot be read: {error}") from error
    return decode_manifest(library, shown(path))


def decode_manifest(library: bytes, name: str) -> Manifest:
    """Return the manifest in the bytes of a compiled library; ``name`` is for messages.

    Raises:
        ArtifactError: as ``read_manifest``.
    """
    if not library.startswith(b"\x7fELF"):
        raise ArtifactError(f"{name}: not a shared library; expected a file written by `bnnc compile`")
    start = _find_section(library)
    if start is None or start + _HEADER.size > len(library):
        raise ArtifactError(f"{name}: no manifest inside: not written by `bnnc compile`, or damaged; compile it again")
    _, version, digest, length = _HEADER.unpack_from(library, start)
    if digest != _digest(library, start):
        raise ArtifactError(f"{name}: truncated or damaged (its checksum does not match); copy or compile it again")
    if version > FORMAT_VERSION:
        raise ArtifactError(
            f"{name}: manifest format {version} is newer than this bnnc understands ({FORMAT_VERSION}); "
            "upgrade bnnc, or compile the model again with this one"
        )
    stored = library[start + _HEADER.size : start + _HEADER.size + length]
    try:
        if len(stored) != length:
            raise ValueError("the manifest ends behind the file's end")
        manifest: Manifest = json.loads(stored if version < _FIRST_COMPRESSED else _decompress(stored))
        machine = _machine(library)
        architecture = manifest["target"]["architecture"]
    except (ValueError, KeyError, TypeError, RecursionError, zlib.error, ELFError) as error:
        # Only a file sealed by something other than this compiler gets here: the digest was right.
        raise ArtifactError(f"{name}: malformed ({plain(str(error))}); compile it again") from error
    if architecture != _ELF_MACHINES.get(machine):
        raise ArtifactError(f"{name}: malformed (the manifest does not describe this library); compile it again")
    return manifest


def check_loadable(manifest: Manifest, name: str, tvm_version: str) -> None:
    """Check that this machine and this TVM can run the library that ``manifest`` describes.

    Raises:
        ArtifactError: other architecture, missing CPU features, other TVM version.
    """
    target = manifest["target"]
    host = host_architecture()
    if target["architecture"] != host:
        raise ArtifactError(
            f"{name}: compiled for {target['architecture']} ({target['text']}), "
            f"this machine is {host or 'unsupported'}; compile the model again with --target native"
        )
    missing = missing_features(target["features"])
    if missing:
        raise ArtifactError(
            f"{name}: compiled for {target['cpu']}, this CPU lacks {', '.join(missing)}; "
            "compile the model again with --target native"
        )
    built_with = manifest["versions"]["tvm"]
    if built_with != tvm_version:
        raise ArtifactError(
            f"{name}: compiled with TVM {built_with}, this is TVM {tvm_version}; "
            f"install apache-tvm=={built_with} or compile the model again"
        )


def spec_to_json(spec: TensorSpec) -> dict[str, Any]:
    """Return the manifest's form of ``spec``."""
    return {"name": spec.name, "shape": list(spec.shape), "dtype": spec.dtype}


def specs_from_json(entries: Sequence[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Return the tensors that a list of the manifest describes."""
    return tuple(TensorSpec(str(e["name"]), tuple(int(d) for d in e["shape"]), str(e["dtype"])) for e in entries)


def _find_section(library: bytes) -> int | None:
    """Return the offset of the manifest section; None where there is none, or more than one."""
    start = library.find(_MAGIC)
    if start < 0 or library.find(_MAGIC, start + 1) >= 0:
        return None
    return start


def _machine(library: bytes) -> str:
    """``e_machine`` of the file, whose headers and sections are all there.

    Raises:
        ValueError: they are not, or lead out of the file.
    """
    try:
        elf = ELFFile(BytesIO(library))
        for section in elf.iter_sections():
            if section["sh_type"] != "SHT_NOBITS" and section["sh_offset"] + section["sh_size"] > len(library):
                raise ValueError("a section ends behind the file's end")
        for segment in elf.iter_segments():
            if segment["p_offset"] + segment["p_filesz"] > len(library):
                raise ValueError("a segment ends behind the file's end")
        return str(elf.header["e_machine"])
    except ValueError:
        raise
    except Exception as error:  # elftools raises many types, from AttributeError to its parser's own
        raise ValueError("its ELF headers are damaged") from error


def _decompress(stored: bytes) -> bytes:
    stream = zlib.decompressobj()
    text = stream.decompress(stored)
    if not stream.eof or stream.unused_data:
        raise ValueError("the manifest's length is wrong")
    return text


def _digest(library: bytes, start: int) -> bytes:
    view = memoryview(library)
    digest = hashlib.sha256(view[: start + _DIGEST.start])
    digest.update(bytes(_DIGEST.stop - _DIGEST.start))
    digest.update(view[start + _DIGEST.stop :])
    return digest.digest()
