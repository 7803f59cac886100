"""What runs inside Triton server's Python backend: text to tokens, tokens to packed batches.

Only :mod:`bertron_backend.triton_io` knows Triton server's types; everything else runs and is
tested without it.
"""
