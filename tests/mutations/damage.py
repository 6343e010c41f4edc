"""Ways to damage an ONNX model: its bytes, its protobuf fields, its structure. All from a seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped]
from onnx import numpy_helper

Damage = Callable[[Random, bytes], bytes]

EXTREMES = [0, -1, 1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**31), -(2**63)]
FLOATS = [0.0, -0.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"), -1.0, 0.5]


def flip_bits(random: Random, data: bytes) -> bytes:
    """Flip one to sixteen bits."""
    damaged = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 4, 16])):
        damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
    return bytes(damaged)


def flip_header(random: Random, data: bytes) -> bytes:
    """Flip bits where the structure is: outside of the longest run of tensor data."""
    damaged = bytearray(data)
    for _ in range(random.choice([1, 2, 3])):
        end = random.choice([min(len(data), 400), len(data)])
        position = random.randrange(end) if end < len(data) else len(data) - 1 - random.randrange(min(len(data), 300))
        damaged[position] = random.choice([damaged[position] ^ (1 << random.randrange(8)), 0, 0x7F, 0x80, 0xFF])
    return bytes(damaged)


def truncate(random: Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: random.randrange(len(data))]


def splice(random: Random, data: bytes) -> bytes:
    """Remove, repeat or move a piece."""
    start = random.randrange(len(data))
    end = min(len(data), start + random.choice([1, 2, 8, 64, 1024]))
    piece = data[start:end]
    target = random.randrange(len(data))
    removed, repeated = data[:start] + data[end:], data[:end] + piece + data[end:]
    return random.choice([removed, repeated, data[:target] + piece + data[target:]])


def change_field(random: Random, data: bytes) -> bytes:
    """Change, clear or copy one protobuf field anywhere in the model."""
    model = onnx.load_model_from_string(data)
    messages = list(_messages(model))
    message = random.choice(messages)
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = random.choice(fields)
    try:
        _change(random, message, field, messages)
        return bytes(model.SerializeToString())
    except (TypeError, ValueError, EncodeError, DecodeError, AttributeError):
        return data  # a value that the field does not take


def change_structure(random: Random, data: bytes) -> bytes:
    """Drop, duplicate, reorder or rewire nodes; change operators, attributes, shapes, dtypes and constants."""
    model = onnx.load_model_from_string(data)
    for _ in range(random.choice([1, 1, 2])):
        _restructure(random, model)
    return bytes(model.SerializeToString())


DAMAGES: list[Damage] = [flip_bits, flip_header, truncate, splice, change_field, change_structure, change_structure]


def damaged(seed: int, originals: list[bytes]) -> tuple[str, bytes]:
    """Name and result of the damage number ``seed``, done to one of the originals."""
    random = Random(seed)
    damage, original = random.choice(DAMAGES), random.choice(originals)
    return damage.__name__, damage(random, original)


def _messages(message: Message) -> list[Message]:
    found = [message]
    for field, value in message.ListFields():
        if field.message_type is not None:
            for item in value if _is_repeated(value) else [value]:
                found += _messages(item)
    return found


def _is_repeated(value: object) -> bool:
    return hasattr(value, "append") or hasattr(value, "add")


def _change(random: Random, message: Message, field: object, messages: list[Message]) -> None:
    name, value = field.name, getattr(message, field.name)  # type: ignore[attr-defined]
    kind = random.randrange(4)
    if kind == 0:
        message.ClearField(name)
    elif _is_repeated(value):
        items = list(value)
        if kind == 1 and items:
            del value[random.randrange(len(items))]
        elif items and field.message_type is not None:  # type: ignore[attr-defined]
            value.add().CopyFrom(random.choice(items))
        elif items:
            value[random.randrange(len(items))] = _other_value(random, items[0])
    elif field.message_type is not None:  # type: ignore[attr-defined]
        others = [other for other in messages if other.DESCRIPTOR == value.DESCRIPTOR]
        value.CopyFrom(random.choice(others))
    else:
        setattr(message, name, _other_value(random, value))


def _other_value(random: Random, value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice([*EXTREMES, value + 1, value - 1, value * 2])
    if isinstance(value, float):
        return random.choice(FLOATS)
    if isinstance(value, bytes):
        return random.choice([b"", value[:-1], value + value, bytes(len(value)), value[::-1]])
    return random.choice(["", "x", "Conv", "Sign", "\n", "y" * 1000, f"{value}_"])


def _restructure(random: Random, model: onnx.ModelProto) -> None:
    graph = model.graph
    nodes = list(graph.node)
    if not nodes:
        return
    node = random.choice(nodes)
    names = [name for other in nodes for name in (*other.input, *other.output)] + ["", "nowhere"]
    tensors = [*graph.initializer, *(a.t for other in nodes for a in other.attribute if a.HasField("t"))]
    infos = [*graph.input, *graph.output]
    kind = random.randrange(12)
    if kind == 0:
        graph.node.remove(node)
    elif kind == 1:
        graph.node.add().CopyFrom(node)
    elif kind == 2:
        random.shuffle(nodes)
        copies = [onnx.NodeProto.FromString(other.SerializeToString()) for other in nodes]
        del graph.node[:]
        graph.node.extend(copies)
    elif kind == 3:
        schemas = sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""})
        node.op_type = random.choice([random.choice(schemas), random.choice(nodes).op_type])
    elif kind == 4 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice(names)
    elif kind == 5 and node.output:
        node.output[random.randrange(len(node.output))] = random.choice(names)
    elif kind == 6 and node.attribute:
        attribute = random.choice(list(node.attribute))
        attribute.i = random.choice([*EXTREMES, attribute.i + 1])
        attribute.f = random.choice(FLOATS)
        attribute.ints[:] = [random.choice([*EXTREMES, value, value + 1]) for value in attribute.ints]
        if attribute.s:
            attribute.s = random.choice([b"", b"SAME_UPPER", b"VALID", b"reflect", attribute.s[:-1]])
    elif kind == 7 and infos:
        kind_of = random.choice(infos).type.tensor_type
        if kind_of.shape.dim and random.randrange(3):
            random.choice(list(kind_of.shape.dim)).dim_value = random.choice([*EXTREMES, 2, 5, 17])
        else:
            kind_of.elem_type = random.randrange(26)
    elif kind == 8 and tensors:
        tensor = random.choice(tensors)
        if tensor.dims and random.randrange(2):
            tensor.dims[random.randrange(len(tensor.dims))] = random.choice(EXTREMES)
        else:
            tensor.data_type = random.randrange(26)
    elif kind == 9 and tensors:
        _change_numbers(random, random.choice(tensors))
    elif kind == 10:
        model.opset_import[0].version = random.randrange(0, 30)
    elif kind == 11:
        swapped = random.choice(nodes)
        node.op_type, swapped.op_type = swapped.op_type, node.op_type


def _change_numbers(random: Random, tensor: onnx.TensorProto) -> None:
    """Other numbers of the same shape, or the same numbers in another shape."""
    try:
        array = numpy_helper.to_array(tensor).copy()
    except (TypeError, ValueError, KeyError, onnx.checker.ValidationError):
        return  # damaged before, or stored beside the file
    if random.randrange(3) == 0 and array.ndim:
        array = np.ascontiguousarray(array.reshape(-1)[: random.randrange(array.size + 1)])
    elif random.randrange(2):
        array = np.ascontiguousarray(array.T)
    elif array.size and array.dtype.kind in "fiu":
        with np.errstate(all="ignore"):
            array.reshape(-1)[random.randrange(array.size)] = np.asarray(random.choice(FLOATS[:4] + FLOATS[7:])).astype(
                array.dtype
            )
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
