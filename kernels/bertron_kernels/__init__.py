"""Ops for BERT-family encoders over packed tokens, with kernels in the Triton language.

Importing this package registers ``torch.ops.bertron.*`` (see ``schemas``): the Triton-language
kernels on CUDA, PyTorch's own operators on the CPU, and on CUDA too where Triton is not installed.
It must be imported before ``torch.jit.load`` of a model that uses the ops.
"""

from bertron_kernels.attention import varlen_attention_reference
from bertron_kernels.embedding import embedding_layer_norm_reference
from bertron_kernels.gelu import bias_gelu_reference
from bertron_kernels.layer_norm import add_layer_norm_reference
from bertron_kernels.ops import implementation
from bertron_kernels.pooling import pool_reference
from bertron_kernels.schemas import SCHEMAS

__all__ = [
    "SCHEMAS",
    "add_layer_norm_reference",
    "bias_gelu_reference",
    "embedding_layer_norm_reference",
    "implementation",
    "pool_reference",
    "varlen_attention_reference",
]
