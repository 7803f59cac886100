"""The ops of the namespace ``bertron``: their names and signatures, written once.

Shape letters: B sequences, T packed tokens, H heads, D head_dim, E hidden size, I intermediate
size; K inputs and N outputs of a matrix product. A saved ``model.pt`` names these ops, so a changed
signature breaks every saved file: give the changed op a new name instead, or raise the manifest's
format. Each signature can be implemented from C++ as well.
"""

from types import MappingProxyType

NAMESPACE = "bertron"

SCHEMAS = MappingProxyType(
    {
        # weight [N, K] to the form that the device's `linear` ops take. With an int8 weight come
        # weight_scale [N] and perhaps input_scale [K], both float32: what is multiplied is
        # (x * input_scale), quantised, and (weight_scale * weight)
        "pack_weight": "(Tensor weight, Tensor? weight_scale, Tensor? input_scale) -> Tensor",
        # x [T, K], weight packed from [N, K], bias [N] -> [T, N] in the dtype of bias
        "linear": (
            "(Tensor x, Tensor weight, Tensor? weight_scale, Tensor? input_scale, Tensor bias)"
            " -> Tensor"
        ),
        "linear_gelu": (
            "(Tensor x, Tensor weight, Tensor? weight_scale, Tensor? input_scale, Tensor bias)"
            " -> Tensor"
        ),
        # and residual [T, N], norm_weight and norm_bias [N], all of bias's dtype -> [T, N]
        "linear_add_layer_norm": (
            "(Tensor x, Tensor weight, Tensor? weight_scale, Tensor? input_scale, Tensor bias,"
            " Tensor residual, Tensor norm_weight, Tensor norm_bias, float eps) -> Tensor"
        ),
        # qkv [T, 3, H, D], cu_seqlens [B + 1] int32 -> [T, H, D]
        "varlen_attention": (
            "(Tensor qkv, Tensor cu_seqlens, int max_seqlen, float softmax_scale) -> Tensor"
        ),
        # x, residual [T, E]; bias, weight, norm_bias [E] -> [T, E]
        "add_layer_norm": (
            "(Tensor x, Tensor? residual, Tensor? bias, Tensor weight, Tensor norm_bias, float eps)"
            " -> Tensor"
        ),
        # x [T, I], bias [I] -> [T, I]
        "bias_gelu": "(Tensor x, Tensor? bias) -> Tensor",
        # ids [T], embeddings [rows, E], weight and bias [E] -> [T, E]
        "embedding_layer_norm": (
            "(Tensor input_ids, Tensor position_ids, Tensor? token_type_ids,"
            " Tensor word_embeddings, Tensor position_embeddings, Tensor? token_type_embeddings,"
            " Tensor weight, Tensor bias, float eps) -> Tensor"
        ),
        # hidden_states [T, E], cu_seqlens [B + 1] int32 -> fp32 [B, E], or [B, 2E] for mean-max
        "pool": ("(Tensor hidden_states, Tensor cu_seqlens, str mode, bool normalize) -> Tensor"),
    }
)
