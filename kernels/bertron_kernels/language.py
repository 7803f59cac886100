"""The Triton language, where it is installed.

There are no wheels of it for macOS and Windows, where the references and the PyTorch
implementations still serve: without it a kernel stays a plain function that nobody calls.
"""

from __future__ import annotations

from typing import Any

try:
    import triton
    import triton.language as tl
except ImportError:

    class _WithoutTriton:
        """Lets a file that defines kernels be imported."""

        @staticmethod
        def jit(kernel: Any = None, **_options: object) -> Any:
            return kernel if kernel is not None else lambda kernel: kernel

    triton = _WithoutTriton()
    tl = None
    TensorDescriptor: Any = _WithoutTriton
    HAS_TRITON = False
else:
    from triton.tools.tensor_descriptor import TensorDescriptor  # type: ignore[no-redef]

    HAS_TRITON = True

__all__ = ["HAS_TRITON", "TensorDescriptor", "tl", "triton"]
