"""What a server compiles at its warm-up and after it: ``compiled_kernels.py DIRECTORY DEVICE``.

Serves batches of every bucket, length class and beyond; prints two lists of kernels, as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import triton
from bertron_backend.buckets import BUCKETS, longest_by_class
from bertron_backend.encoder import Encoder
from bertron_backend.packing import TokenRequest
from bertron_backend.settings import EncoderSettings

SETTINGS = EncoderSettings(((1, 8), (8, 128)), max_tokens_per_forward=0, intra_op_threads=1)


def main(directory: Path, device: str) -> None:
    compiled: list[str] = []

    def note(**kernel: object) -> bool:
        compiled.append(str(kernel["repr"]))
        return False  # go on and compile it

    triton.knobs.runtime.jit_cache_hook = note
    encoder = Encoder(directory, device, SETTINGS)
    encoder.warm_up()
    at_warm_up = list(compiled)
    compiled.clear()
    limit = encoder.manifest.limits.max_tokens_per_text
    for tokens in (1, 15, 33, 500, 3001, *[b.tokens for b in BUCKETS], 8200, 12000, 16000):
        for longest in longest_by_class(tokens, limit).values():
            answers = encoder.embed([request_of(tokens // longest, longest, encoder)])
            if isinstance(answers[0], Exception):
                raise answers[0]
    # More texts than any bucket has: eagerly, and each program searches for its sequence.
    encoder.embed([request_of(3000, 1, encoder), request_of(1, limit, encoder)])
    sys.stdout.write(json.dumps({"at warm-up": at_warm_up, "after it": compiled}))


def request_of(texts: int, tokens: int, encoder: Encoder) -> TokenRequest:
    shape = (texts, tokens)
    ids = np.random.default_rng(0).integers(0, encoder.manifest.vocab_size, shape, dtype=np.int32)
    return TokenRequest(ids, np.ones_like(ids), np.zeros_like(ids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
