"""BERT over packed tokens, written for TorchScript.

No layer sees padding: the tokens of all texts stand in one ``[T, E]`` matrix, and ``cu_seqlens``
says where each text begins. Everything heavy is an op of the ``bertron`` namespace
(:mod:`bertron_kernels`), which has an implementation for each device.

Shapes: B texts, T packed tokens, S padded length, H heads, D head_dim, E hidden size,
I intermediate size.
"""

from __future__ import annotations

import math
from typing import Optional

import bertron_kernels  # noqa: F401  registers torch.ops.bertron
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bertron_torchscript.checkpoint import EncoderConfig, Pooling

# A layer's matrix products: each has NAME_weight and NAME_bias, and for an int8
# weight NAME_scale and NAME_input_scale.
LINEARS = ("qkv", "output", "intermediate", "down")


class BertLayer(nn.Module):
    """Self-attention and feed-forward, each followed by add + layer norm (post-norm).

    Its weights are [N, K] until :func:`bertron_torchscript.model_file.load` packs them for the
    device that it loads them onto.
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        hidden, intermediate = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_heads
        self.head_dim = config.head_dim
        self.softmax_scale = 1.0 / math.sqrt(config.head_dim)
        self.eps = config.layer_norm_eps
        self.qkv_weight = _parameter(3 * hidden, hidden)
        self.qkv_bias = _parameter(3 * hidden)
        self.output_weight = _parameter(hidden, hidden)
        self.output_bias = _parameter(hidden)
        self.attention_norm_weight = _parameter(hidden)
        self.attention_norm_bias = _parameter(hidden)
        self.intermediate_weight = _parameter(intermediate, hidden)
        self.intermediate_bias = _parameter(intermediate)
        self.down_weight = _parameter(hidden, intermediate)
        self.down_bias = _parameter(hidden)
        self.output_norm_weight = _parameter(hidden)
        self.output_norm_bias = _parameter(hidden)
        for name in LINEARS:  # float32 tensors [N] and [K] beside an int8 weight
            self.register_buffer(f"{name}_scale", None)
            self.register_buffer(f"{name}_input_scale", None)

    def forward(
        self,
        x: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        kept_rows: Optional[Tensor],  # noqa: UP045  TorchScript's spelling
    ) -> Tensor:
        """[T, E] → [T, E], or [B, E] where ``kept_rows`` [B] are all that anybody reads."""
        qkv = torch.ops.bertron.linear(
            x, self.qkv_weight, self.qkv_scale, self.qkv_input_scale, self.qkv_bias
        )
        qkv = qkv.view(x.size(0), 3, self.num_heads, self.head_dim)  # [T, 3, H, D]
        context = torch.ops.bertron.varlen_attention(
            qkv, cu_seqlens, max_seqlen, self.softmax_scale
        )  # [T, H, D]
        if kept_rows is not None:  # every key and value counted; what follows is row by row
            context = context.index_select(0, kept_rows)
            x = x.index_select(0, kept_rows)
        x = torch.ops.bertron.linear_add_layer_norm(
            context.view(x.size(0), -1),  # [T, E]
            self.output_weight,
            self.output_scale,
            self.output_input_scale,
            self.output_bias,
            x,
            self.attention_norm_weight,
            self.attention_norm_bias,
            self.eps,
        )
        inner = torch.ops.bertron.linear_gelu(
            x,
            self.intermediate_weight,
            self.intermediate_scale,
            self.intermediate_input_scale,
            self.intermediate_bias,
        )  # [T, I]
        y: Tensor = torch.ops.bertron.linear_add_layer_norm(
            inner,
            self.down_weight,
            self.down_scale,
            self.down_input_scale,
            self.down_bias,
            x,
            self.output_norm_weight,
            self.output_norm_bias,
            self.eps,
        )
        return y


class Bert(nn.Module):
    """An encoder with its pooling: token ids in, one vector a text out.

    Args:
        config: The checkpoint's sizes.
        pooling: How a text's token vectors become one vector.
        num_layers: Layers to keep, counted from the embeddings; the rest is pruned.
    """

    def __init__(self, config: EncoderConfig, pooling: Pooling, num_layers: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.pooling_mode = pooling.mode
        self.normalize = pooling.normalize
        self.eps = config.layer_norm_eps
        self.position_offset = config.position_offset
        self.pad_token_id = config.pad_token_id
        self.word_embeddings = _parameter(config.vocab_size, hidden)
        self.position_embeddings = _parameter(config.max_positions + config.position_offset, hidden)
        self.token_type_embeddings = (
            _parameter(config.type_vocab_size, hidden) if config.type_vocab_size else None
        )
        self.embedding_norm_weight = _parameter(hidden)
        self.embedding_norm_bias = _parameter(hidden)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(num_layers))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        item_shape: Tensor,
    ) -> Tensor:
        """Pack, then :meth:`forward_packed`. The argument names are Triton server's input names.

        Args:
            input_ids: [B, S], or flat: the concatenation of every request's [b, s].
            attention_mask: As ``input_ids``; 0 marks padding, which is dropped.
            token_type_ids: As ``input_ids``.
            item_shape: [B, 1], the padded length of each text (Triton server's BATCH_ITEM_SHAPE);
                read for the flat form only.

        Returns:
            [B, E] float32.
        """
        kept = attention_mask != 0
        if input_ids.dim() == 2:
            lengths = kept.sum(1)  # [B]
        else:
            ends = item_shape.flatten().to(torch.int64).cumsum(0)  # [B]
            kept_before = F.pad(kept.to(torch.int64).cumsum(0), [1, 0])  # [sum of B*S, + 1]
            kept_to_end = kept_before.index_select(0, ends)
            lengths = torch.diff(F.pad(kept_to_end, [1, 0]))
        cu_seqlens = F.pad(lengths.cumsum(0), [1, 0]).to(torch.int32)  # [B + 1]
        return self.forward_packed(
            input_ids[kept], token_type_ids[kept], cu_seqlens, int(lengths.max().item())
        )

    @torch.jit.export
    def forward_packed(
        self, input_ids: Tensor, token_type_ids: Tensor, cu_seqlens: Tensor, max_seqlen: int
    ) -> Tensor:
        """The encoder over packed tokens.

        Args:
            input_ids: [T] int32 or int64, every text's tokens one after the other, no padding.
            token_type_ids: [T]; ignored where the model has no token types.
            cu_seqlens: [B + 1] int32, where each text begins; the last is T.
            max_seqlen: Longest text in tokens.

        Returns:
            [B, E] float32, or [B, 2E] with mean-max pooling.
        """
        position_ids = self._position_ids(input_ids, cu_seqlens)
        return self.forward_positions(
            input_ids, token_type_ids, position_ids, cu_seqlens, max_seqlen
        )

    @torch.jit.export
    def forward_positions(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        position_ids: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
    ) -> Tensor:
        """:meth:`forward_packed` from known position ids, fit to be captured in a CUDA graph.

        On CUDA nothing here waits for the device, and no shape depends on a value. The kernels
        take tokens after ``cu_seqlens[-1]`` and trailing texts of no tokens, by which a batch is
        padded to a captured shape: attention leaves the rows of such tokens unwritten, all else is
        row by row, and no text reads them. The CPU's ops refuse such tokens.

        Args:
            input_ids: [T] int32 or int64.
            token_type_ids: [T]; ignored where the model has no token types.
            position_ids: [T] int32 or int64, each token's row in the position table.
            cu_seqlens: [B + 1] int32, where each text begins; the last is T, or less.
            max_seqlen: Longest text in tokens, or more.

        Returns:
            As :meth:`forward_packed`.
        """
        x = torch.ops.bertron.embedding_layer_norm(
            input_ids,
            position_ids,
            token_type_ids if self.token_type_embeddings is not None else None,
            self.word_embeddings,
            self.position_embeddings,
            self.token_type_embeddings,
            self.embedding_norm_weight,
            self.embedding_norm_bias,
            self.eps,
        )  # [T, E]
        pooled_rows = self._pooled_rows(cu_seqlens, x.size(0))
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            x = layer(x, cu_seqlens, max_seqlen, pooled_rows if last else None)
        if pooled_rows is not None and len(self.layers) > 0:  # x is [B, E]: a row a text
            is_empty = torch.diff(cu_seqlens) == 0
            x = x.masked_fill(is_empty[:, None], 0.0)
            cu_seqlens = torch.arange(cu_seqlens.size(0), device=x.device, dtype=torch.int32)
        embedding: Tensor = torch.ops.bertron.pool(x, cu_seqlens, self.pooling_mode, self.normalize)
        return embedding

    def _pooled_rows(self, cu_seqlens: Tensor, tokens: int) -> Optional[Tensor]:  # noqa: UP045  TorchScript's spelling
        """[B]: the one row a text that pooling reads, where it is one: cls and last."""
        if tokens == 0 or self.pooling_mode not in ("cls", "last"):
            return None
        if self.pooling_mode == "cls":
            return cu_seqlens[:-1].clamp(max=tokens - 1).to(torch.int64)
        return (cu_seqlens[1:] - 1).clamp(min=0).to(torch.int64)

    def _position_ids(self, input_ids: Tensor, cu_seqlens: Tensor) -> Tensor:
        """[T]: each token's row in the position table."""
        starts = cu_seqlens.to(torch.int64)  # [B + 1]
        if self.position_offset == 0:
            ones = torch.ones_like(input_ids, dtype=torch.int64)
            return _counts_within_texts(ones, starts, starts) - 1
        # RoBERTa numbers what is not the padding token, and gives that token the row of its own id:
        # a text that spells "<pad>" has one. transformers: create_position_ids_from_input_ids.
        counted = (input_ids != self.pad_token_id).to(torch.int64)
        before = F.pad(counted.cumsum(0), [1, 0]).index_select(0, starts)
        ordinal = _counts_within_texts(counted, starts, before)
        return ordinal * counted + (self.position_offset - 1)


def _counts_within_texts(counted: Tensor, starts: Tensor, before: Tensor) -> Tensor:
    """[T]: the sum of ``counted`` [T] from each text's first token on, by one cumulative sum.

    ``starts`` and ``before``, [B + 1] each: where texts begin, and the sum before that. Not by
    ``repeat_interleave``: it is shared among OpenMP's threads on the CPU however little there is,
    and they then look for more work on the cores that the next ops' threads want.
    """
    steps = F.pad(counted, [0, 1])  # one more, where empty texts at the end begin
    steps.index_add_(0, starts[1:-1], before[:-2] - before[1:-1])
    return steps.cumsum(0)[:-1]


def _parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)
