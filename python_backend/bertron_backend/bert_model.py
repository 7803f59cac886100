"""The encoder as Triton server's Python backend calls it."""

from __future__ import annotations

import json
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from bertron_backend import garbage, triton_io
from bertron_backend.batch_metrics import CountPublisher
from bertron_backend.encoder_queue import QueueExit
from bertron_backend.errors import RequestError
from bertron_backend.settings import EncoderSettings, GpuSettings

if TYPE_CHECKING:  # torch is loaded later, see initialize
    from bertron_backend.encoder import FloatArray
    from bertron_backend.packing import TokenRequest

# On CPUs the encoder takes all cores, and yields a little to the processes that feed it. Else they
# wait for a core at each step of a request: with five times the load that it can bear, a tokenizer
# that only had to refuse was half a second behind, and what it admitted came too late.
NICENESS = 2


class TritonPythonModel:
    """Token ids in, embeddings out; requests of any length share a batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model that the export put beside this file, and warm it up."""
        # How long OpenMP's threads, which share PyTorch's own ops where the CPU library is not
        # built, spin before they sleep. Its default, some milliseconds, takes the cores from the
        # server, the tokenizer and the very thread that is waited for: on busy cores a text of
        # 10 ms then took 250 or 500. Sleeping at once adds 2.5 ms to a text. 10,000 turns, about
        # 0.1 ms, do neither. OpenMP reads this when torch is loaded.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
        from bertron_backend.encoder import Encoder

        device = triton_io.device_of(args)
        if device == "cpu":
            os.nice(NICENESS)  # and that of the threads that this one will start
        started = time.monotonic()
        config = json.loads(args["model_config"])
        settings = EncoderSettings.from_model_config(config)
        self._encoder = Encoder(
            triton_io.version_directory(args),
            device,
            settings,
            GpuSettings.from_model_config(config),
        )
        loaded = time.monotonic()
        cost = self._encoder.warm_up()
        self._queue = QueueExit(cost)
        self._metrics = triton_io.InstanceMetrics(args)
        self._metrics.show_cost(cost)
        self._publisher = CountPublisher(self._encoder.counts, self._metrics.add)
        garbage.leave_out_what_is_loaded()
        triton_io.log_info(
            f"{args['model_name']}: {self._encoder.manifest.name}, {self._encoder.describe()}, "
            f"{settings.intra_op_threads} threads; "
            f"loaded in {loaded - started:.1f} s, warmed up in {time.monotonic() - loaded:.1f} s; "
            f"a forward takes {cost.fixed_ms:.2f} ms + {1e3 * cost.token_ms:.2f} us a token "
            f"+ {1e6 * cost.pair_ms:.2f} ns a pair of tokens in a text"
        )

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its embeddings, or with the error that is its own."""
        read = partial(triton_io.read_tokens, queue=self._queue)
        self._queue.begin()
        try:
            return triton_io.answer_each(requests, read, self._embed, triton_io.embedding_response)
        finally:
            self._queue.end()

    def _embed(
        self, requests: list[TokenRequest]
    ) -> list[tuple[TokenRequest, FloatArray] | RequestError]:
        answers = self._encoder.embed(requests)
        return [
            answer if isinstance(answer, RequestError) else (request, answer)
            for request, answer in zip(requests, answers, strict=True)
        ]

    def finalize(self) -> None:
        """Take the metrics away, and what lies outside this process."""
        self._publisher.stop()
        self._metrics.remove()
        self._queue.close()
        self._encoder.close()
