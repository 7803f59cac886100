"""What a kernel or a model cannot do without: operations, and bytes through device memory.

Bytes count every input read once and every output written once. Operations count what the formula
says, a multiply-add as two and an erf or an exponential as one; of attention and of the matrix
products the multiply-adds alone, as everybody counts them.

T tokens, S tokens of a text, H heads, D head_dim, E hidden size, I intermediate size, L layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

ID_BYTES = 4  # int32 token ids, positions and cu_seqlens
POOLED_BYTES = 4  # an embedding is float32 whatever the dtype


@dataclass(frozen=True)
class Work:
    """The least of one call.

    Attributes:
        operations: Floating-point operations.
        bytes: Through device memory; 0 where they were not counted.
    """

    operations: float
    bytes: float

    @property
    def intensity(self) -> float:
        """Operations a byte."""
        return self.operations / self.bytes

    def tera_per_s(self, ms: float) -> float:
        """TFLOP/s of a call that took ``ms``."""
        return self.operations / ms / 1e9

    def giga_bytes_per_s(self, ms: float) -> float:
        """GB/s of a call that took ``ms``."""
        return self.bytes / ms / 1e6


def attention(lengths: Sequence[int], heads: int, head_dim: int, element: int) -> Work:
    """Q K^T and P V inside each text: 4 S S D a head; [T, 3, H, D] in, [T, H, D] out."""
    width = heads * head_dim
    operations = 4 * width * sum(length**2 for length in lengths)
    return Work(operations, 4 * sum(lengths) * width * element + ID_BYTES * (len(lengths) + 1))


def add_layer_norm(tokens: int, hidden: int, element: int, stream_element: int) -> Work:
    """Nine operations an element: two sums, mean, centre, square, its mean, scale, weight, bias.

    ``stream_element`` bytes have the residual, the result and the vectors, ``element`` the rest.
    """
    size = tokens * hidden
    return Work(9 * size, size * element + (2 * size + 3 * hidden) * stream_element)


def bias_gelu(tokens: int, intermediate: int, element: int) -> Work:
    """Six operations an element: bias, 1 / sqrt(2), erf, 1 +, times x, half."""
    size = tokens * intermediate
    return Work(6 * size, (2 * size + intermediate) * element)


def linear(tokens: int, inputs: int, outputs: int, element: int) -> Work:
    """[T, K] and [N, K] in, [T, N] out, with a bias [N]."""
    size = tokens * inputs + outputs * inputs + outputs + tokens * outputs
    return Work(2 * tokens * inputs * outputs, size * element)


def linear_add_layer_norm(tokens: int, inputs: int, outputs: int, element: int) -> Work:
    """``linear``, the residual [T, N] and two vectors [N] in; nine operations more an output."""
    product, size = linear(tokens, inputs, outputs, element), tokens * outputs
    return Work(product.operations + 9 * size, product.bytes + (size + 2 * outputs) * element)


def embedding_layer_norm(
    tokens: int, words: int, positions: int, token_types: int, hidden: int, element: int
) -> Work:
    """Nine operations an element, as ``add_layer_norm``; of each table the rows that are read.

    Args:
        tokens: T.
        words: Different words among them.
        positions: Different positions among them.
        token_types: Different token types among them.
        hidden: E.
        element: Bytes an element.
    """
    rows = words + positions + token_types + 2 + tokens  # two: weight and bias of the norm
    return Work(9 * tokens * hidden, rows * hidden * element + 3 * ID_BYTES * tokens)


def mean_pool(tokens: int, texts: int, hidden: int, element: int) -> Work:
    """A sum an element; then mean, square, its sum and scale an element of the result."""
    operations = tokens * hidden + 4 * texts * hidden
    size = tokens * hidden * element + texts * hidden * POOLED_BYTES
    return Work(operations, size + ID_BYTES * (texts + 1))


def encoder(lengths: Sequence[int], layers: int, hidden: int, intermediate: int) -> Work:
    """Multiply-adds of the products and of attention over real tokens; bytes are not counted.

    A layer's products are qkv 3 E E, output E E, and twice E I.
    """
    products = 2 * sum(lengths) * (4 * hidden**2 + 2 * hidden * intermediate)
    attended = 4 * hidden * sum(length**2 for length in lengths)
    return Work(layers * (products + attended), 0)
