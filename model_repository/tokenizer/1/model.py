"""Triton server's entry to the tokenizer; the logic is in bertron_backend.tokenizer_model."""

from bertron_backend.tokenizer_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
