import pytest
import torch
import torch.nn.functional as F
from bertron_kernels import add_layer_norm_reference, bias_gelu_reference
from bertron_kernels.linear import linear_reference
from bertron_torchscript.rounding import Rounding

EPS = 1e-12
OPS = ("linear", "linear_gelu", "linear_add_layer_norm")
PRODUCTS = ("float32", "bfloat16", "int8", "int8, scaled inputs")
DTYPES = (torch.float32, torch.bfloat16)
# The norm of the error, relative to the result's; int8 against the same integers.
GATES = {"float32": 1e-5, "bfloat16": 4e-3, "int8": 1e-5, "int8, scaled inputs": 1e-5}

# T, K, N. A tile is 6 rows of 64 columns, or of 16; a chunk is 96 rows; below 32 rows two threads
# share the columns, from there on the rows. A word is 1 float, 2 bf16 or 4 int8. AMX takes 16 at
# once, with 32 rows and 32 columns or 16 and 64, and shares columns below 128 rows.
SHAPES = {
    "one row, as a query": (1, 384, 1152),
    "a row short of a tile, K of half a word": (5, 26, 80),
    "one tile": (6, 48, 64),
    "a row past a tile, N past 16": (7, 330, 17),
    "the last word a quarter full": (12, 33, 312),
    "by rows, the last tile short": (63, 312, 312),
    "a chunk and a tile and a row": (103, 384, 65),
    "three chunks": (257, 48, 384),
    "many rows of one column": (1000, 64, 1),
    "whole words for AMX, five of its tiles": (17, 64, 80),
    "the same, two blocks of rows": (70, 128, 48),
    "the same, by rows, four chunks": (530, 128, 48),
    "one input": (13, 1, 16),
    "no inputs": (7, 0, 20),
    "no rows": (0, 64, 64),
}


def quantized(x):
    """``x`` [T, K] in float64 as the library's integers stand for it, rounding where it rounds."""
    low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    inverse = (1 / scale).double()
    zero = torch.round((-low * inverse.float()).double())
    steps = torch.round(x.double() * inverse) + zero
    return (steps.clamp(0, 255) - zero) * scale.double()


class Layer:
    """A weight as stored, and what it stands for."""

    def __init__(self, randn, product, inputs, outputs):
        weight = randn(outputs, inputs) * 0.1
        self.product = product
        self.scale = self.input_scale = None
        if product.startswith("int8"):
            spread = 0.5 + randn(inputs).abs() if "scaled" in product else None
            self.stored, self.scale, self.input_scale = (
                Rounding(torch.eye(inputs)).quantize(weight, spread)
                if inputs
                else (weight.to(torch.int8), torch.ones(outputs), spread)
            )
        else:
            self.stored = weight.to(getattr(torch, product))
        self.bias, self.norm_weight, self.norm_bias = (randn(outputs) for _ in range(3))

    def pack(self, cpu):
        return cpu.run("pack_weight", self.stored, self.scale, self.input_scale)

    def arguments(self, op, x, residual, packed, dtype):
        rows = (residual, self.norm_weight, self.norm_bias) if op == OPS[2] else ()
        narrow = (t.to(dtype) for t in rows)
        bias = self.bias.to(dtype)
        eps = (EPS,) if op == OPS[2] else ()
        return (x, packed, self.scale, self.input_scale, bias, *narrow, *eps)

    def exact(self, op, arguments, choice):
        """The op in float64, over the integers that the library multiplies."""
        x, _, _, _, bias, *rows = arguments
        x, weight = x.float(), self.stored.double()
        if self.input_scale is not None:
            x = x * self.input_scale
        if self.scale is not None:
            weight = weight * self.scale[:, None]
            if choice != "eager" and x.shape[1]:
                x = quantized(x)
        product = linear_reference(x.double(), weight, bias.double())
        if op == "linear_gelu":
            return bias_gelu_reference(product, None)
        if op == "linear_add_layer_norm":
            residual, norm_weight, norm_bias, eps = rows
            rows = (residual.double(), None, norm_weight.double(), norm_bias.double())
            return add_layer_norm_reference(product, *rows, eps)
        return product


def gate(product, dtype, choice):
    # Eager rounds a bf16 product before and after its bias.
    exact = 2 * GATES["bfloat16"] if choice == "eager" else GATES["bfloat16"]
    # Without bf16 instructions the library widens the weights, which loses nothing.
    is_rounded = product == "bfloat16" and choice in ("eager", "avx512_bf16", "amx")
    if dtype is torch.bfloat16 or is_rounded:
        return exact
    if product == "bfloat16":
        return GATES["float32"]
    return GATES["float32" if choice == "eager" else product]


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_products_agree_with_float64(cpu, randn, shape, product):
    tokens, inputs, outputs = shape
    layer = Layer(randn, product, inputs, outputs)
    packed = layer.pack(cpu)
    for op in OPS:
        for in_dtype in DTYPES:
            for dtype in DTYPES:
                x, residual = randn(tokens, inputs, dtype=in_dtype), randn(tokens, outputs)
                if op == "linear_add_layer_norm" and outputs == 1:
                    continue  # the layer norm of one value is its shift
                arguments = layer.arguments(op, x, residual, packed, dtype)
                out = cpu.run(op, *arguments)
                exact = layer.exact(op, arguments, cpu.choice)
                assert out.dtype == dtype
                assert out.shape == exact.shape
                error = (out.double() - exact).norm()
                assert error <= gate(product, dtype, cpu.choice) * exact.norm(), (op, in_dtype)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("op", OPS)
def test_every_row_is_its_own(cpu, randn, op, product):
    x = randn(40, 48)
    x[0] = 0
    x[1] = 3  # nothing below zero: the whole range of int8 for one value
    x[2, 7] = 1e4  # an outlier takes the range from the others
    x[3] *= 1e30
    x[4, 5] = torch.nan
    x[5, 47] = torch.inf  # in the last vector
    residual = randn(40, 80)
    layer = Layer(randn, product, 48, 80)
    arguments = layer.arguments(op, x, residual, layer.pack(cpu), torch.float32)
    out = cpu.run(op, *arguments)
    assert out[4].isnan().all()
    assert not out[5].isfinite().all()
    exact = layer.exact(op, arguments, cpu.choice)
    wide = gate(product, torch.float32, cpu.choice)
    for row in (0, 1, 2, 3, *range(6, 40)):
        if row == 3 and op == "linear_add_layer_norm":
            continue  # its variance is infinite in fp32
        assert (out[row].double() - exact[row]).norm() <= 2 * wide * exact[row].norm(), row


def test_an_int8_sum_of_the_most_inputs_does_not_overflow(library):
    inputs = 65000
    weight = torch.full((1, inputs), -128, dtype=torch.int8)
    scale, bias = torch.ones(1), torch.zeros(1)
    packed = library.run("pack_weight", weight, scale, None)
    for x in (torch.ones(1, inputs), -torch.ones(1, inputs)):
        out = library.run("linear", x, packed, scale, None, bias)
        torch.testing.assert_close(out, x.sum(1, keepdim=True) * -128)


@pytest.mark.parametrize("tiny", [1e-36, 1e-39, 1e-45])  # the last two are subnormal
def test_rows_of_tiny_numbers_stay_near_zero(cpu, randn, tiny):
    layer = Layer(randn, "int8", 48, 80)
    x = torch.full((3, 48), tiny)
    out = cpu.run("linear", *layer.arguments("linear", x, None, layer.pack(cpu), torch.float32))
    assert torch.equal(out, layer.bias.expand(3, 80))


def test_a_large_mean_keeps_its_digits(cpu, randn):
    # E[x^2] - E[x]^2 is wrong by 14 % in fp32 here.
    layer = Layer(randn, "float32", 64, 768)
    residual = 30 + 0.05 * randn(40, 768)
    layer.bias.zero_()
    x = torch.zeros(40, 64)
    op = "linear_add_layer_norm"
    arguments = layer.arguments(op, x, residual, layer.pack(cpu), torch.float32)
    exact = layer.exact(op, arguments, cpu.choice)
    assert (cpu.run(op, *arguments).double() - exact).norm() <= 1e-4 * exact.norm()


@pytest.mark.parametrize("op", OPS[:2])
def test_no_outputs_are_none(cpu, op):
    x, weight, bias = torch.ones(5, 64), torch.ones(0, 64), torch.ones(0)
    packed = cpu.run("pack_weight", weight, None, None)
    assert cpu.run(op, x, packed, None, None, bias).shape == (5, 0)


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("op", OPS)
def test_a_batch_equals_its_parts_for_any_number_of_threads(library, randn, op, product):
    layer = Layer(randn, product, 90, 200)
    x, residual = randn(103, 90), randn(103, 200)
    packed = layer.pack(library)
    batch = library.run(op, *layer.arguments(op, x, residual, packed, torch.float32))
    for rows in (slice(0, 1), slice(5, 12), slice(12, 45), slice(45, 103)):
        part = layer.arguments(op, x[rows], residual[rows], packed, torch.float32)
        for num_threads in (1, 2, 9):  # nine share 4 panels: rows are parted too
            assert torch.equal(library.run(op, *part, num_threads=num_threads), batch[rows])


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [3, 200])  # by columns and by rows
def test_eight_callers_at_once_all_get_the_result(library, randn, tokens, op, product):
    layer = Layer(randn, product, 90, 200)
    x, residual = randn(tokens, 90), randn(tokens, 200)
    arguments = layer.arguments(op, x, residual, layer.pack(library), torch.bfloat16)
    expected = library.run(op, *arguments)
    outs = library.run(op, *arguments, callers=8)
    assert torch.equal(outs, expected.expand_as(outs))


def test_rows_may_start_at_any_address(cpu, randn):
    # A view from its first element on: bf16 words then straddle 32-bit boundaries.
    layer = Layer(randn, "bfloat16", 64, 80)
    flat = randn(1 + 7 * 64, dtype=torch.bfloat16)
    x = flat[1:].view(7, 64)
    packed = layer.pack(cpu)
    arguments = layer.arguments("linear", x, None, packed, torch.float32)
    out = cpu.run("linear", *arguments)
    assert torch.equal(out, cpu.run("linear", x.clone(), *arguments[1:]))


def test_a_padded_word_multiplies_nothing(library, randn):
    # What scratch memory held before is NaN here: 0 * NaN would be NaN.
    for product in PRODUCTS:
        layer = Layer(randn, product, 33, 17)
        packed = layer.pack(library)
        full = torch.full((90, 64), torch.nan, dtype=torch.bfloat16)
        other = Layer(randn, product, 64, 64)
        for dtype in DTYPES:
            library.run(
                "linear",
                *other.arguments("linear", full.to(dtype), None, other.pack(library), dtype),
            )
            x = randn(9, 33, dtype=dtype)
            arguments = layer.arguments("linear", x, None, packed, torch.float32)
            assert library.run("linear", *arguments).isfinite().all()


def with_changed(arguments, **changes):
    names = ("x", "weight", "weight_scale", "input_scale", "bias")
    names += ("residual", "norm_weight", "norm_bias", "eps")
    return [changes.get(name, value) for name, value in zip(names, arguments, strict=True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4)}, r"x has shape \[4\], expected \[T, K\]"),
        ({"x": torch.zeros(4, 24).half()}, r"x has dtype torch.float16, expected torch.float32 or"),
        ({"x": torch.zeros(4, 24).double()}, r"x has dtype torch.float64, expected torch.float3"),
        ({"x": torch.zeros(24, 4).T}, r"x has strides \[1, 4\].*contiguous"),
        ({"x": torch.zeros(4, 28)}, r"weight has shape \[1, 24, 64, 1\], expected \[1, 28, 64, 1"),
        ({"weight": torch.zeros(20, 24)}, r"weight has shape \[20, 24\], .* pack_weight"),
        ({"weight": torch.zeros(1, 24, 1, 1)}, r"weight has shape \[1, 24, 1, 1\], expected \[1, "),
        ({"weight": torch.zeros(1, 24, 64, 1).double()}, "weight has dtype torch.float64, expect"),
        ({"weight": torch.zeros(1, 64, 24, 1).transpose(1, 2)}, r"weight has strides .*contiguous"),
        ({"bias": torch.zeros(70)}, r"weight has shape \[1, .*, expected \[2, 24, 64, 1\]"),
        ({"bias": torch.zeros(20, 1)}, r"bias has shape \[20, 1\], expected \[N\]"),
        ({"bias": torch.zeros(20).half()}, "bias has dtype torch.float16, expected torch.float32"),
        ({"residual": torch.zeros(3, 20)}, r"residual has shape \[3, 20\], expected \[4, 20\]"),
        ({"residual": torch.zeros(4, 20).bfloat16()}, "residual has dtype torch.bfloat16, expect"),
        ({"norm_weight": torch.zeros(19)}, r"norm_weight has shape \[19\], expected \[20\]"),
        ({"norm_bias": torch.zeros(20).half()}, "norm_bias has dtype torch.float16, expected tor"),
    ],
)
def test_the_library_names_wrong_arguments(library, refused, changes, message):
    row = torch.zeros(20)
    packed = library.run("pack_weight", torch.zeros(20, 24), None, None)
    arguments = (torch.zeros(4, 24), packed, None, None, row, torch.zeros(4, 20), row, row, EPS)
    with refused(message):
        library.run("linear_add_layer_norm", *with_changed(arguments, **changes))


@pytest.mark.parametrize(
    ("scale", "input_scale", "message"),
    [
        (None, None, "weight_scale is missing"),
        (torch.ones(19), None, r"weight_scale has shape \[19\], expected \[20\]"),
        (torch.ones(20).double(), None, "weight_scale has dtype torch.float64, expected torch.fl"),
        (torch.ones(20), torch.ones(25), r"input_scale has shape \[25\], expected \[24\]"),
    ],
)
def test_the_library_names_a_wrong_scale(library, refused, scale, input_scale, message):
    weight, x, row = torch.zeros(20, 24, dtype=torch.int8), torch.zeros(4, 24), torch.zeros(20)
    packed = library.run("pack_weight", weight, torch.ones(20), None)
    with refused(message):
        library.run("linear", x, packed, scale, input_scale, row)
    if scale is not None:
        with refused(message):
            library.run("pack_weight", weight, scale, input_scale)


def test_the_most_inputs_of_int8_are_held(library, refused):
    inputs = 65001
    scale = torch.ones(1)
    weight = torch.zeros(1, inputs, dtype=torch.int8)
    packed = library.run("pack_weight", weight, scale, None)
    with refused("x has 65001 columns, an int8 product takes at most 65000"):
        library.run("linear", torch.zeros(1, inputs), packed, scale, None, torch.zeros(1))


@pytest.mark.parametrize(
    ("weight", "scale", "input_scale", "message"),
    [
        (torch.zeros(20), None, None, "weight has .*(expected 2|N, K)"),
        (torch.zeros(20, 24), torch.ones(20), None, "int8 weight, and with no other"),
        (torch.zeros(20, 24), None, torch.ones(24), "int8 weight, and with no other"),
        (torch.zeros(20, 24, dtype=torch.int8), None, None, "int8 weight, and with no other"),
    ],
)
def test_pack_weight_names_wrong_arguments(cpu, refused, weight, scale, input_scale, message):
    with refused(message):
        cpu.run("pack_weight", weight, scale, input_scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_library_refuses_other_dtypes_that_eager_takes(library, on_cpu, refused, dtype):
    weight, x, bias = (torch.ones(*shape, dtype=dtype) for shape in ((20, 24), (4, 24), (20,)))
    with refused(f"weight has dtype {dtype}, expected torch.float32, torch.bfloat16 or torch.int8"):
        library.run("pack_weight", weight, None, None)
    out = on_cpu("eager").run("linear", x, weight, None, None, bias)
    assert torch.equal(out, F.linear(x, weight, bias))
