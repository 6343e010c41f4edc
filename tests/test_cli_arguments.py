"""Words of the command line, without running anything."""

from __future__ import annotations

import click
import pytest

from bnn_compiler.cli.arguments import InputShape, join_target_words, shapes_by_name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m.onnx", "--target", "llvm", "-mcpu=cortex-a72"], ["m.onnx", "--target=llvm -mcpu=cortex-a72"]),
        (["--target", "llvm", "-mcpu=a", "-mattr=+neon", "m.onnx"], ["--target=llvm -mcpu=a -mattr=+neon", "m.onnx"]),
        (["--target", "llvm -mcpu=a", "-o", "x.so"], ["--target=llvm -mcpu=a", "-o", "x.so"]),
        (["--target=llvm", "-mtriple=aarch64-linux-gnu", "-v"], ["--target=llvm -mtriple=aarch64-linux-gnu", "-v"]),
        (["--target", "llvm", "-num-cores=4"], ["--target=llvm -num-cores=4"]),
        (["--target", "native", "-o", "-mcpu"], ["--target=native", "-o", "-mcpu"]),
        (["-mcpu=a", "--target", "llvm"], ["-mcpu=a", "--target=llvm"]),
        (["--target"], ["--target"]),
        (["--target", "llvm", "--", "-mcpu=a"], ["--target=llvm", "--", "-mcpu=a"]),
    ],
)
def test_target_words_are_joined(words: list[str], expected: list[str]) -> None:
    assert join_target_words(words) == expected


def test_input_shape() -> None:
    convert = InputShape().convert
    assert convert("x=1,3,224,224", None, None) == ("x", (1, 3, 224, 224))
    assert convert("a=b=2", None, None) == ("a=b", (2,))
    assert convert("scalar=", None, None) == ("scalar", ())


@pytest.mark.parametrize("text", ["x", "=1,2", "x=1,a", "x=1,-3", "x=0"])
def test_bad_input_shape(text: str) -> None:
    with pytest.raises(click.BadParameter, match=text):
        InputShape().convert(text, None, None)


def test_two_shapes_for_one_input() -> None:
    assert shapes_by_name([("x", (1,)), ("x", (1,)), ("y", (2,))]) == {"x": (1,), "y": (2,)}
    with pytest.raises(click.UsageError, match="two shapes for 'x'"):
        shapes_by_name([("x", (1,)), ("x", (2,))])
