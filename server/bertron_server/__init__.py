"""Finds, starts and watches Triton server; the `bertron` command line."""
