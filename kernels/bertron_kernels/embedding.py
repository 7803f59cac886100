"""Three embedding lookups, their sum and its layer normalisation in one kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from bertron_kernels.arguments import KERNEL_DTYPES, check_embedding_layer_norm
from bertron_kernels.language import tl, triton
from bertron_kernels.launch import Launch, next_power_of_2
from bertron_kernels.layer_norm import add_layer_norm_reference


@triton.jit(do_not_specialize=["num_words", "num_positions", "num_token_types"])
def _embedding_layer_norm_kernel(
    input_ids_ptr,
    position_ids_ptr,
    token_type_ids_ptr,
    word_embeddings_ptr,
    position_embeddings_ptr,
    token_type_embeddings_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    eps,
    num_words,
    num_positions,
    num_token_types,
    HIDDEN_SIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_E)
    is_column = columns < HIDDEN_SIZE

    # An id outside its table reads nothing: a wild read would end the process for every request.
    word = tl.load(input_ids_ptr + row).to(tl.int64)
    mask = is_column & (word >= 0) & (word < num_words)
    at = word * HIDDEN_SIZE + columns
    x = tl.load(word_embeddings_ptr + at, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_E]

    position = tl.load(position_ids_ptr + row).to(tl.int64)
    mask = is_column & (position >= 0) & (position < num_positions)
    at = position * HIDDEN_SIZE + columns
    x += tl.load(position_embeddings_ptr + at, mask=mask, other=0.0).to(tl.float32)

    if token_type_embeddings_ptr is not None:
        if token_type_ids_ptr is not None:
            token_type = tl.load(token_type_ids_ptr + row).to(tl.int64)
            mask = is_column & (token_type >= 0) & (token_type < num_token_types)
            at = token_type * HIDDEN_SIZE + columns
        else:
            mask = is_column
            at = columns
        x += tl.load(token_type_embeddings_ptr + at, mask=mask, other=0.0).to(tl.float32)

    mean = tl.sum(x, 0) / HIDDEN_SIZE
    centred = tl.where(is_column, x - mean, 0.0)
    variance = tl.sum(centred * centred, 0) / HIDDEN_SIZE
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    out = centred * tl.rsqrt(variance + eps) * weight + bias
    out_at = row * HIDDEN_SIZE + columns
    tl.store(out_ptr + out_at, out.to(out_ptr.dtype.element_ty), mask=is_column)


def plan_embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    out: Tensor,
) -> Launch:
    """The launch that writes the embeddings to ``out``; arguments are not checked."""
    num_words, hidden_size = word_embeddings.shape
    block_e = next_power_of_2(hidden_size)
    return Launch(
        kernel=_embedding_layer_norm_kernel,
        grid=(len(input_ids),),
        arguments={
            "input_ids_ptr": input_ids,
            "position_ids_ptr": position_ids,
            "token_type_ids_ptr": token_type_ids,
            "word_embeddings_ptr": word_embeddings,
            "position_embeddings_ptr": position_embeddings,
            "token_type_embeddings_ptr": token_type_embeddings,
            "weight_ptr": weight,
            "bias_ptr": bias,
            "out_ptr": out,
            "eps": eps,
            "num_words": num_words,
            "num_positions": len(position_embeddings),
            "num_token_types": 0 if token_type_embeddings is None else len(token_type_embeddings),
        },
        constants={"HIDDEN_SIZE": hidden_size, "BLOCK_E": block_e},
        num_warps=4 if block_e <= 4096 else 8,
    )


def embedding_layer_norm(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Sum of a token's word, position and token type embedding, layer normalised.

    The sum and the statistics are fp32. The kernel cannot raise: an id outside its table adds
    zeros. Check ids where they come in.

    Args:
        input_ids: [T] int32 or int64, contiguous, on CUDA.
        position_ids: [T] int32 or int64.
        token_type_ids: [T] int32 or int64; None takes row 0 of ``token_type_embeddings``.
        word_embeddings: [vocabulary, E] fp16, bf16 or fp32; E at most 8192.
        position_embeddings: [positions, E] as ``word_embeddings``.
        token_type_embeddings: [token types, E] as ``word_embeddings``; None where the model has
            none, and then ``token_type_ids`` must be None too.
        weight: [E] as ``word_embeddings``.
        bias: [E] as ``word_embeddings``.
        eps: Added to the variance.

    Returns:
        [T, E] in the dtype of the embeddings.

    Raises:
        ValueError: Shape, dtype, layout or device do not fit, or E is above 8192.

    Source: Devlin et al. 2018, figure 2, arXiv:1810.04805.
    """
    check_embedding_layer_norm(
        input_ids,
        position_ids,
        token_type_ids,
        word_embeddings,
        position_embeddings,
        token_type_embeddings,
        weight,
        bias,
        KERNEL_DTYPES,
    )
    out = word_embeddings.new_empty((len(input_ids), word_embeddings.shape[1]))
    plan_embedding_layer_norm(
        input_ids,
        position_ids,
        token_type_ids,
        word_embeddings,
        position_embeddings,
        token_type_embeddings,
        weight,
        bias,
        eps,
        out,
    ).run()
    return out


def embedding_layer_norm_reference(
    input_ids: Tensor,
    position_ids: Tensor,
    token_type_ids: Tensor | None,
    word_embeddings: Tensor,
    position_embeddings: Tensor,
    token_type_embeddings: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """What ``embedding_layer_norm`` must give for ids inside their tables.

    Computes in float64 when given float64, otherwise in fp32, and rounds once at the end.
    """
    dtype = word_embeddings.dtype
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    total = word_embeddings[input_ids.long()].to(exact)
    total = total + position_embeddings[position_ids.long()].to(exact)
    if token_type_embeddings is not None:
        rows = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        total = total + token_type_embeddings[rows.long()].to(exact)
    return add_layer_norm_reference(total, None, None, weight.to(exact), bias.to(exact), eps).to(
        dtype
    )
