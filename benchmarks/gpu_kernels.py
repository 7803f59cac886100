"""Each kernel: checked against float64 on fresh random data, then timed beside PyTorch's own.

Shapes: B texts, T packed tokens, S padded length, H heads, D head_dim, E hidden size,
I intermediate size, K inputs and N outputs of a product.
"""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import gpu_lengths
import gpu_work
import torch
import torch.nn.functional as F
from bertron_kernels import (
    add_layer_norm_reference,
    bias_gelu_reference,
    embedding_layer_norm_reference,
    pool_reference,
    varlen_attention_reference,
)
from bertron_kernels import linear as library
from bertron_kernels.gemm import BIAS, GELU, gemm_reference
from gpu_report import Row
from gpu_timing import Budget, OutOfTimeError, replay_times_ms, sets_beyond_cache
from gpu_work import Work
from torch import Tensor

PART = "kernels"
OURS = "Bertron"
# The norm of the error against float64, relative to the norm of the result.
GATES = {torch.float32: 1e-5, torch.float16: 5e-4, torch.bfloat16: 4e-3}
TOKENS = 16384
QUICK_TOKENS = 8192
BATCH_TOKENS = 4096  # 32 x 128, what the targets speak of
EPS = 1e-12
VOCABULARY, POSITIONS, TOKEN_TYPES = 30522, 512, 2
HEADS = {64: 12, 32: 12, 128: 8}  # by head_dim: BERT-base, MiniLM, and the widest that is served
# E, I: BERT-base first, since the time may not suffice for all
SIZES = ((768, 3072), (384, 1536), (1024, 4096))
LIBRARY = "PyTorch's product"  # cuBLAS, with our kernel after it

Arguments = tuple[Any, ...]
Run = Callable[..., Tensor]


def _same(arguments: Arguments) -> Arguments:
    return arguments


def _as_it_is(out: Tensor, _arguments: Arguments) -> Tensor:
    return out


@dataclass(frozen=True)
class Peer:
    """Another way to compute the same.

    Attributes:
        run: Takes what ``prepare`` gives.
        prepare: From our arguments to its own, which is not timed.
        restore: From its result, and our arguments, to the layout of ours; not timed either.
        is_ours: It must be right, too.
    """

    run: Run
    prepare: Callable[[Arguments], Arguments] = _same
    restore: Callable[[Tensor, Arguments], Tensor] = _as_it_is
    is_ours: bool = False


@dataclass(frozen=True)
class Case:
    """One op at one shape.

    Attributes:
        draw: Fresh arguments for ``ours`` and ``reference``.
        reference: In float64 where it is given that.
        peers: By name; the first is PyTorch's own in the same dtype.
    """

    op: str
    shape: str
    dtype: torch.dtype
    work: Work
    draw: Callable[[], Arguments]
    ours: Run
    reference: Run
    peers: Mapping[str, Peer] = field(default_factory=dict)


def cases(device: torch.device, tokens: int = TOKENS) -> Iterator[Case]:
    """All cases, what matters most first.

    Args:
        device: Where they are drawn.
        tokens: Of the large ones.
    """
    lengths = gpu_lengths.first_tokens(gpu_lengths.read(), tokens)
    batch = min(BATCH_TOKENS, tokens)
    yield attention([128] * (batch // 128), 12, 64, torch.float16, device)
    yield add_layer_norm(tokens, 768, torch.float16, device)
    for dtype in (torch.float16, torch.bfloat16):
        for head_dim, heads in HEADS.items():
            if dtype == torch.bfloat16 and head_dim != 64:
                continue
            for length in (512, 128, 64, 32):
                yield attention([length] * (tokens // length), heads, head_dim, dtype, device)
            yield attention(lengths, heads, head_dim, dtype, device)
        for hidden, intermediate in SIZES if dtype == torch.float16 else SIZES[:1]:
            if (hidden, dtype) != (768, torch.float16):
                yield add_layer_norm(tokens, hidden, dtype, device)
            yield bias_gelu(tokens, intermediate, dtype, device)
            for count in (batch, 128):
                for op, inputs, outputs in products(hidden, intermediate):
                    yield product(op, count, inputs, outputs, dtype, device)
            yield embedding_layer_norm(lengths, hidden, dtype, device)
            yield pool(lengths, hidden, dtype, device)


def cumulated(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[B + 1] int32, where each text begins, then T."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def _shape_of(lengths: Sequence[int]) -> str:
    if len(set(lengths)) == 1:
        return f"{len(lengths)} x {lengths[0]}"
    return f"{len(lengths)} real texts, {sum(lengths)} tokens"


def attention(
    lengths: Sequence[int], heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """``varlen_attention`` beside scaled_dot_product_attention, padded to the longest."""
    starts, longest = cumulated(lengths, device), max(lengths)
    scale = head_dim**-0.5
    is_token = torch.arange(longest, device=device) < torch.diff(starts)[:, None]  # [B, S]
    uniform = len(set(lengths)) == 1
    mask = None if uniform else is_token[:, None, None, :]

    def draw() -> Arguments:
        qkv = torch.randn(sum(lengths), 3, heads, head_dim, device=device).to(dtype)
        return qkv, starts, longest, scale

    def pad(arguments: Arguments) -> Arguments:
        qkv = arguments[0]
        padded = qkv.new_zeros((len(lengths), longest, *qkv.shape[1:]))  # [B, S, 3, H, D]
        padded[is_token] = qkv
        return padded.permute(2, 0, 3, 1, 4).unbind()  # each [B, H, S, D], as a product leaves it

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    return Case(
        "varlen_attention",
        f"{_shape_of(lengths)}, {heads} heads of {head_dim}",
        dtype,
        gpu_work.attention(lengths, heads, head_dim, dtype.itemsize),
        draw,
        torch.ops.bertron.varlen_attention,
        varlen_attention_reference,
        {"torch SDPA, padded": Peer(attend, pad, lambda out, _: out.transpose(1, 2)[is_token])},
    )


def add_layer_norm(tokens: int, hidden: int, dtype: torch.dtype, device: torch.device) -> Case:
    """``add_layer_norm`` beside two sums and layer_norm; a bfloat16 model's stream is float32."""
    stream = torch.float32 if dtype == torch.bfloat16 else dtype

    def draw() -> Arguments:
        x = torch.randn(tokens, hidden, device=device).to(dtype)
        residual = torch.randn(tokens, hidden, device=device).to(stream)
        vectors = [torch.randn(hidden, device=device).to(stream) for _ in range(3)]
        return x, residual, *vectors, EPS

    def plain(
        x: Tensor, residual: Tensor, bias: Tensor, weight: Tensor, norm_bias: Tensor, eps: float
    ) -> Tensor:
        return F.layer_norm(x + bias + residual, (hidden,), weight, norm_bias, eps)

    return Case(
        "add_layer_norm",
        f"{tokens} x {hidden}",
        dtype,
        gpu_work.add_layer_norm(tokens, hidden, dtype.itemsize, stream.itemsize),
        draw,
        torch.ops.bertron.add_layer_norm,
        add_layer_norm_reference,
        _plain_and_compiled(plain, hidden == 768 and dtype == torch.float16, device),
    )


def bias_gelu(tokens: int, intermediate: int, dtype: torch.dtype, device: torch.device) -> Case:
    """``bias_gelu`` beside a sum and gelu."""

    def draw() -> Arguments:
        x = torch.randn(tokens, intermediate, device=device).to(dtype)
        return x, torch.randn(intermediate, device=device).to(dtype)

    return Case(
        "bias_gelu",
        f"{tokens} x {intermediate}",
        dtype,
        gpu_work.bias_gelu(tokens, intermediate, dtype.itemsize),
        draw,
        torch.ops.bertron.bias_gelu,
        bias_gelu_reference,
        _plain_and_compiled(
            lambda x, bias: F.gelu(x + bias),
            intermediate == 3072 and dtype == torch.float16,
            device,
        ),
    )


def products(hidden: int, intermediate: int) -> tuple[tuple[str, int, int], ...]:
    """(op, inputs, outputs) of a layer's matrix products, in their order."""
    return (
        ("linear", hidden, 3 * hidden),
        ("linear_add_layer_norm", hidden, hidden),
        ("linear_gelu", hidden, intermediate),
        ("linear_add_layer_norm", intermediate, hidden),
    )


def product(
    op: str, tokens: int, inputs: int, outputs: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """``linear``, ``linear_gelu`` or ``linear_add_layer_norm`` beside PyTorch's own operators."""
    is_norm = op == "linear_add_layer_norm"

    def draw() -> Arguments:
        x = torch.randn(tokens, inputs, device=device).to(dtype)
        weight = (torch.randn(outputs, inputs, device=device) * inputs**-0.5).to(dtype)
        bias, scale, shift = (torch.randn(outputs, device=device).to(dtype) for _ in range(3))
        residual = torch.randn(tokens, outputs, device=device).to(dtype)
        return (x, weight, bias, residual, scale, shift, EPS) if is_norm else (x, weight, bias)

    def ours(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        if device.type != "cuda":  # there packing leaves a weight as it is
            weight = torch.ops.bertron.pack_weight(weight, None, None)
        out: Tensor = getattr(torch.ops.bertron, op)(x, weight, None, None, bias, *rest)
        return out

    def exact(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        if not is_norm:
            return gemm_reference(x, weight, bias, GELU if op == "linear_gelu" else BIAS)
        residual, *norm = rest
        sums = gemm_reference(x, weight, None, BIAS)
        return add_layer_norm_reference(sums, residual, bias, *norm)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        out = F.linear(x, weight, bias)
        if not is_norm:
            return F.gelu(out) if op == "linear_gelu" else out
        residual, *norm = rest
        return F.layer_norm(out + residual, (outputs,), *norm)

    work = gpu_work.linear_add_layer_norm if is_norm else gpu_work.linear
    return Case(
        op,
        f"{tokens} x {inputs} to {outputs}",
        dtype,
        work(tokens, inputs, outputs, dtype.itemsize),
        draw,
        ours,
        exact,
        {"torch": Peer(plain), LIBRARY: Peer(functools.partial(_library, op), is_ours=True)},
    )


def _library(op: str, x: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
    """What serves where no tile of ours does: PyTorch's product, then our kernel."""
    way = {
        "linear": library.linear,
        "linear_gelu": library.linear_gelu_with(torch.ops.bertron.bias_gelu),
        "linear_add_layer_norm": library.linear_add_layer_norm_with(
            torch.ops.bertron.add_layer_norm
        ),
    }[op]
    return way(x, weight, None, None, bias, *rest)


def embedding_layer_norm(
    lengths: Sequence[int], hidden: int, dtype: torch.dtype, device: torch.device
) -> Case:
    """``embedding_layer_norm`` beside three look-ups, their sum and layer_norm."""
    tokens = sum(lengths)
    words = torch.randint(VOCABULARY, (tokens,), device=device, dtype=torch.int32)
    positions = torch.cat([torch.arange(length, dtype=torch.int32) for length in lengths])
    positions = positions.to(device)
    different = int(words.unique().numel())

    def draw() -> Arguments:
        types = torch.randint(TOKEN_TYPES, (tokens,), device=device, dtype=torch.int32)
        tables = [
            torch.randn(rows, hidden, device=device).to(dtype)
            for rows in (VOCABULARY, POSITIONS, TOKEN_TYPES)
        ]
        vectors = [torch.randn(hidden, device=device).to(dtype) for _ in range(2)]
        return words, positions, types, *tables, *vectors, EPS

    def plain(
        ids: Tensor,
        places: Tensor,
        types: Tensor,
        word_table: Tensor,
        position_table: Tensor,
        type_table: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        total = F.embedding(ids, word_table) + F.embedding(types, type_table)
        total = total + F.embedding(places, position_table)
        return F.layer_norm(total, (hidden,), weight, bias, eps)

    return Case(
        "embedding_layer_norm",
        f"{tokens} x {hidden}",
        dtype,
        gpu_work.embedding_layer_norm(
            tokens, different, max(lengths), TOKEN_TYPES, hidden, dtype.itemsize
        ),
        draw,
        torch.ops.bertron.embedding_layer_norm,
        embedding_layer_norm_reference,
        _plain_and_compiled(plain, hidden == 768 and dtype == torch.float16, device),
    )


def pool(lengths: Sequence[int], hidden: int, dtype: torch.dtype, device: torch.device) -> Case:
    """``pool`` with a normalised mean, beside a masked mean of the padded texts."""
    starts = cumulated(lengths, device)
    counts = torch.diff(starts)[:, None]
    is_token = torch.arange(max(lengths), device=device) < counts  # [B, S]

    def draw() -> Arguments:
        return torch.randn(sum(lengths), hidden, device=device).to(dtype), starts, "mean", True

    def pad(arguments: Arguments) -> Arguments:
        padded = arguments[0].new_zeros((len(lengths), max(lengths), hidden))
        padded[is_token] = arguments[0]
        return (padded,)

    def plain(padded: Tensor) -> Tensor:
        total = (padded.float() * is_token[:, :, None]).sum(1)
        return F.normalize(total / counts, dim=1)

    return Case(
        "pool",
        f"{_shape_of(lengths)}, {hidden}",
        dtype,
        gpu_work.mean_pool(sum(lengths), len(lengths), hidden, dtype.itemsize),
        draw,
        torch.ops.bertron.pool,
        pool_reference,
        {"torch, padded": Peer(plain, pad)},
    )


def _plain_and_compiled(plain: Run, is_main: bool, device: torch.device) -> dict[str, Peer]:
    """PyTorch's operators, and at one shape also compiled: each compilation takes seconds."""
    peers = {"torch": Peer(plain)}
    if is_main and device.type == "cuda":
        peers["torch.compile"] = Peer(torch.compile(plain, dynamic=False))
    return peers


def exact_result(case: Case, arguments: Arguments) -> Tensor:
    """What ``case`` must give, in float64."""
    return case.reference(
        *(
            value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in arguments
        )
    )


def poisoned(run: Run, arguments: Arguments) -> Tensor:
    """The result, where every number that nobody wrote is NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # cuBLAS says that it may not be deterministic
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return run(*arguments)
        finally:
            torch.use_deterministic_algorithms(before)


def relative_error(found: Tensor, exact: Tensor) -> float:
    """||found - exact|| / ||exact||; NaN where a value is not finite."""
    return float((found.double() - exact).norm() / exact.norm())


def problem_of(
    found: Tensor, exact: Tensor, dtype: torch.dtype, plain: Tensor | None = None
) -> str:
    """What is wrong with ``found``, or nothing.

    Args:
        found: The result.
        exact: In float64.
        dtype: Whose gate it is held to.
        plain: PyTorch's own result in that dtype, whose largest error may be exceeded twice.
    """
    if found.shape != exact.shape:
        return f"shape {list(found.shape)}, expected {list(exact.shape)}"
    error = relative_error(found, exact)
    if not error <= GATES[dtype]:
        return f"error {error:.1e}, gate {GATES[dtype]:.0e}"
    if plain is not None:
        largest = float((found.double() - exact).abs().max())
        allowed = 2 * float((plain.double() - exact).abs().max())
        allowed += torch.finfo(dtype).eps * float(exact.abs().max())
        if not largest <= allowed:
            return f"largest error {largest:.1e}, allowed {allowed:.1e}"
    return ""


def ways_of(case: Case) -> dict[str, Peer]:
    """Ours first, then every peer."""
    return {OURS: Peer(case.ours, is_ours=True), **case.peers}


def check(case: Case) -> dict[str, Row]:
    """A row for each way, on one draw: ours last, held against PyTorch's own as well."""
    arguments = case.draw()
    exact = exact_result(case, arguments)
    rows: dict[str, Row] = {}
    plain: Tensor | None = None
    for name, way in reversed(ways_of(case).items()):
        row = Row(PART, case.op, case.shape, str(case.dtype).removeprefix("torch."), name)
        row.work, row.is_ours = case.work, way.is_ours
        rows[name] = row
        try:
            run = poisoned if way.is_ours else _inference
            out = way.restore(run(way.run, way.prepare(arguments)), arguments)
            row.error = relative_error(out, exact)
            row.problem = problem_of(out, exact, case.dtype, plain if name == OURS else None)
            plain = out
        except OutOfTimeError:
            raise
        except Exception as error:  # what cannot run is a row that says so
            row.problem = _words(error)
    return dict(reversed(rows.items()))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _inference(run: Run, arguments: Arguments) -> Tensor:
    with torch.inference_mode():
        return run(*arguments)


def measure(case: Case, l2_bytes: int) -> list[Row]:
    """Check, then time what is right; on CUDA."""
    rows = check(case)
    sets = [case.draw() for _ in range(sets_beyond_cache(l2_bytes, case.work.bytes))]
    for name, way in ways_of(case).items():
        if rows[name].problem:
            continue
        try:
            calls = [functools.partial(way.run, *way.prepare(arguments)) for arguments in sets]
            with torch.inference_mode():
                rows[name].times_ms = replay_times_ms(calls)
        except OutOfTimeError:
            raise
        except Exception as error:  # what cannot be captured, likewise
            rows[name].problem = _words(error)
    return list(rows.values())


def measure_all(budget: Budget, l2_bytes: int, tokens: int, add: Callable[[Row], None]) -> None:
    """Every case that the time suffices for.

    Args:
        budget: Of this part.
        l2_bytes: Of the GPU's second cache.
        tokens: Of the large cases.
        add: Called with every row as it comes.

    Raises:
        OutOfTimeError: It did not suffice.
    """
    with budget.enforced():
        for case in cases(torch.device("cuda"), tokens):
            for row in measure(case, l2_bytes):
                add(row)
            torch.cuda.empty_cache()
