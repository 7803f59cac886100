"""Triton server's entry to the encoder; the logic is in bertron_backend.bert_model."""

from bertron_backend.bert_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
