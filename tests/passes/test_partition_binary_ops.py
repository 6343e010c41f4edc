"""What is found binary in the small graphs, and the reason where something is not."""

from __future__ import annotations

import json

import pytest

from bnn_compiler.composites import binary_composites, read_composite
from bnn_compiler.frontend import import_onnx
from bnn_compiler.passes import DecideSignZeros, FoldBatchNorm, PartitionBinaryOps
from tests.conftest import ModelFinder
from tests.frontend.onnx_text import parse
from tests.small_relax_modules import applied

# graph: (binary, binary_weight, float) layers and the reasons of those that are not binary
EXPECTED: dict[str, tuple[tuple[int, int, int], list[str]]] = {
    "base_sign_conv": ((1, 0, 0), []),
    "one_zero_weight": ((0, 0, 1), ["weights_contain_zero"]),
    "ternary_weights": ((0, 0, 1), ["weights_contain_zero"]),
    "one_zero_channel": ((0, 0, 1), ["weights_contain_zero"]),
    "one_ulp_off": ((1, 0, 0), []),
    "negative_zero_weight": ((0, 0, 1), ["weights_contain_zero"]),
    "float_act": ((0, 1, 0), ["activations_float"]),
    "relu_act": ((0, 1, 0), ["activations_float"]),
    "alpha_per_channel": ((1, 0, 0), []),
    "alpha_per_input_channel": ((0, 0, 1), ["weights_scaled_per_input"]),
    "alpha_negative": ((1, 0, 0), []),
    "all_plus_one": ((0, 0, 1), ["weights_constant"]),
    "affine01_act": ((0, 1, 0), ["activations_not_symmetric"]),
    "weights01": ((0, 0, 1), ["weights_contain_zero"]),
    # The second layer reads the sign of an integer convolution that does reach 0 (74 times in its own test vector):
    # its activations are three-valued, and are kept so.
    "shared_weight": ((1, 1, 0), ["activations_not_two_valued"]),
    "shared_weight_bin_and_float": ((1, 1, 0), ["activations_float"]),
    "grouped4": ((1, 0, 0), []),
    "depthwise": ((1, 0, 0), []),
    "dilation2": ((1, 0, 0), []),
    "asym_pads": ((1, 0, 0), []),
    "k1_s2": ((1, 0, 0), []),
    "k1x7": ((1, 0, 0), []),
    "k2_even": ((1, 0, 0), []),
    "auto_pad_same_upper": ((1, 0, 0), []),
    "auto_pad_same_lower": ((1, 0, 0), []),
    "cin1": ((1, 0, 0), []),
    "cout1": ((1, 0, 0), []),
    "cin65_cout7": ((1, 0, 0), []),
    "k_full": ((1, 0, 0), []),
    "sign_of_zero": ((0, 1, 0), ["activations_not_symmetric"]),
    "where_of_zero": ((1, 0, 0), []),
    "relu_sub_sign": ((1, 0, 0), []),
    "bias": ((1, 0, 0), []),
    "pad_minus1": ((1, 0, 0), []),
    "pad_half": ((0, 1, 0), ["activations_not_two_valued"]),
    "pad_before_sign": ((1, 0, 0), []),
    "pad_conv_and_op": ((1, 0, 0), []),
    "conv1d": ((1, 0, 0), []),
    "conv3d": ((1, 0, 0), ["unsupported_form"]),  # proven as it is; FlattenConv3d makes it 2-D
    "bn_sign_opset17": ((2, 0, 0), []),
    "bn_gamma_zero": ((2, 0, 0), []),
    "int_threshold_tie": ((2, 0, 0), []),
    "int_threshold_tie_gt": ((2, 0, 0), []),
    "flipped_where": ((1, 0, 0), []),
    "where_scaled": ((1, 0, 0), []),
    "where_asym": ((0, 1, 0), ["activations_not_symmetric"]),
    "div_abs": ((1, 0, 0), []),
    "ste_residue": ((1, 0, 0), []),
    "sign_plus_eps": ((0, 1, 0), ["padding_not_in_alphabet"]),
    "sign_identity_transpose": ((1, 0, 0), []),
    "two_outputs": ((1, 0, 0), []),
    "sign_to_float_op": ((1, 0, 0), []),
    "maxpool_of_sign": ((1, 0, 0), []),
    "concat_signs": ((1, 0, 0), []),
    "concat_sign_float": ((0, 1, 0), ["activations_float"]),
    "add_signs": ((0, 1, 0), ["activations_not_two_valued"]),
    "gemm_transB": ((1, 0, 0), []),
    "gemm_noT": ((1, 0, 0), []),
    "matmul_weight_left": ((1, 0, 0), []),
    "matmul_alpha_col": ((1, 0, 0), []),
    "matmul_alpha_row": ((0, 0, 1), ["weights_scaled_per_input"]),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_small_graph(name: str, small_model: ModelFinder) -> None:
    counts, reasons = EXPECTED[name]
    module = applied(import_onnx(small_model(name)).module, FoldBatchNorm())
    partitioned = applied(module, DecideSignZeros(), PartitionBinaryOps())
    layers = json.loads(str(partitioned.attrs["bnnc.layers"]))
    found = tuple(sum(layer["status"] == status for layer in layers) for status in ("binary", "binary_weight", "float"))
    assert found == counts, layers
    assert [layer["reason"] for layer in layers if layer["reason"]] == reasons
    lowered = [layer for layer in layers if layer["algorithm"] == "popcount"]
    specs = [read_composite(function) for function in binary_composites(partitioned).values()]
    assert len(specs) == len(lowered)
    assert sorted(spec.macs for spec in specs) == sorted(layer["macs"] for layer in lowered)


# Reasons; that the networks compute what they should is for tests/e2e/test_networks.py.
NETWORKS: dict[str, tuple[tuple[int, int, int], set[str]]] = {
    "fracbnn_resnet20": ((19, 0, 1), {"weights_not_two_valued"}),
    "fracbnn_resnet20_pg_raw_legacy": ((19, 18, 1), {"activations_not_two_valued", "weights_not_two_valued"}),
    "larq_quicknet": ((16, 0, 10), {"weights_not_two_valued"}),
    "reactnet_a_w05_onnxsim": ((31, 0, 2), {"weights_not_two_valued"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str, network: ModelFinder) -> None:
    counts, reasons = NETWORKS[name]
    module = applied(import_onnx(network(name)).module, FoldBatchNorm(), DecideSignZeros(), PartitionBinaryOps())
    layers = json.loads(str(module.attrs["bnnc.layers"]))
    found = tuple(sum(layer["status"] == status for layer in layers) for status in ("binary", "binary_weight", "float"))
    assert found == counts, layers
    assert {layer["reason"] for layer in layers if layer["reason"]} == reasons


@pytest.mark.parametrize(
    ("shift", "status", "detail"),
    [
        (0.25, "binary", ""),  # z/2 + 1/4 is never 0 for an integer z
        (0.5, "binary_weight", "keeps 0, which is common in 's' (Add)"),  # z = -1
    ],
)
def test_whether_an_integer_reaches_zero(shift: float, status: str, detail: str) -> None:
    model = parse(f"""g (float[2,7] x) => (float[2,3] z)
        <float[7,3] u = {{1,-1,1, 1,1,-1, -1,-1,1, 1,-1,1, 1,1,1, -1,1,1, 1,-1,-1}},
         float[3,3] v = {{1,-1,1, 1,1,-1, -1,-1,1}}, float two = {{2}}, float shift = {{{shift}}}>
        {{ a = Sign(x)  y = MatMul(a, u)  h = Div(y, two)  s = Add(h, shift)  b = Sign(s)  z = MatMul(b, v) }}""")
    module = applied(import_onnx(model).module, DecideSignZeros(), PartitionBinaryOps())
    layer = json.loads(str(module.attrs["bnnc.layers"]))[1]
    assert layer["status"] == status
    assert detail in layer["detail"] if detail else not layer["detail"]


@pytest.mark.parametrize(
    ("activation", "detail"),
    [
        ("s = Sign(x)  a = Mul(s, s)  b = Mul(a, s)", "three-valued activations: Sign 'Sign_0' keeps 0"),
        (
            "g = Greater(x, zero)  l = Less(x, zero)  p = Cast<to = 1>(g)  n = Cast<to = 1>(l)  b = Sub(p, n)",
            "activations take the values -1, 0 and 1",
        ),
        ("r = Round(x)  b = Clip(r, low, high)", "activations take the 3 values -1, 0, 1: codes of 2 bits"),
    ],
)
def test_three_values_with_and_without_a_sign(activation: str, detail: str) -> None:
    model = parse(f"""g (float[2,3] x) => (float[2,3] z)
        <float low = {{-1}}, float high = {{1}}, float zero = {{0}}, float[3,3] v = {{1,-1,1, 1,1,-1, -1,-1,1}}>
        {{ {activation}  z = MatMul(b, v) }}""")
    module = applied(import_onnx(model).module, DecideSignZeros("exact"), PartitionBinaryOps(sign_zero="exact"))
    (layer,) = json.loads(str(module.attrs["bnnc.layers"]))
    assert (layer["reason"], layer["detail"]) == ("activations_not_two_valued", detail)


def test_a_layer_that_no_kernel_takes_is_binary_all_the_same() -> None:
    model = parse("""g (double[2,8] x) => (double[2,3] y)
        <double[8,3] w = {1,-1,1, 1,1,-1, -1,-1,1, 1,-1,1, 1,1,1, -1,1,1, 1,-1,-1, 1,1,1}>
        { a = Sign(x)  y = MatMul(a, w) }""")
    module = applied(import_onnx(model).module, DecideSignZeros(), PartitionBinaryOps())
    (layer,) = json.loads(str(module.attrs["bnnc.layers"]))
    assert (layer["status"], layer["reason"], layer["algorithm"]) == ("binary", "unsupported_form", "float")
    assert "float64" in layer["detail"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("relu_act", "'s' (Relu) may hold any float"),
        ("float_act", "the input 'input' may hold any float"),
        ("concat_sign_float", "may hold any float"),
    ],
)
def test_the_tensor_that_is_not_two_valued_is_named(name: str, sentence: str, small_model: ModelFinder) -> None:
    module = applied(import_onnx(small_model(name)).module, DecideSignZeros(), PartitionBinaryOps())
    details = [layer["detail"] for layer in json.loads(str(module.attrs["bnnc.layers"]))]
    assert any(sentence in detail for detail in details), details


def test_float_algorithm_only_reports(small_model: ModelFinder) -> None:
    module = applied(
        import_onnx(small_model("base_sign_conv")).module, DecideSignZeros(), PartitionBinaryOps(algorithm="float")
    )
    (layer,) = json.loads(str(module.attrs["bnnc.layers"]))
    assert (layer["status"], layer["algorithm"], layer["reason"]) == ("binary", "float", "algorithm_forced")
    assert not binary_composites(module)


@pytest.mark.parametrize("mode", ["auto", "plus", "exact"])
def test_sign_of_zero_of_a_general_float(mode: str, small_model: ModelFinder) -> None:
    decide = DecideSignZeros(mode)  # type: ignore[arg-type]
    module = applied(import_onnx(small_model("base_sign_conv")).module, decide, PartitionBinaryOps())
    (layer,) = json.loads(str(module.attrs["bnnc.layers"]))
    (spec,) = (read_composite(function) for function in binary_composites(module).values())
    if mode != "exact":
        assert (layer["status"], spec.predicate) == ("binary", "ge")
    else:
        assert (layer["status"], spec.predicate) == ("binary_weight", "ternary")


def test_partition_twice_changes_nothing(small_model: ModelFinder) -> None:
    once = applied(import_onnx(small_model("bn_sign_opset17")).module, DecideSignZeros(), PartitionBinaryOps())
    twice = applied(once, DecideSignZeros(), PartitionBinaryOps())
    assert {str(variable) for variable in once.functions} == {str(variable) for variable in twice.functions}
