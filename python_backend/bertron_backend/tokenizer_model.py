"""The tokenizer as Triton server's Python backend calls it."""

from __future__ import annotations

import json
import os
from typing import Any

from bertron_torchscript.manifest import checked_file

from bertron_backend import garbage, queue_age, triton_io
from bertron_backend.admission import Admission, Admitted
from bertron_backend.batch_tokenizer import BatchTokenizer, TextRequest, TokenBatch
from bertron_backend.encoder_queue import QueueEntrance, Ticket
from bertron_backend.errors import RequestError
from bertron_backend.settings import TokenizerSettings


class TritonPythonModel:
    """TEXT in, token ids out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer that the export put beside this model."""
        # The cores are the encoder's: one thread tokenises many times what they embed.
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        settings = TokenizerSettings.from_model_config(json.loads(args["model_config"]))
        path, manifest = checked_file(triton_io.version_directory(args), "tokenizer.json")
        limit = manifest.limits.max_tokens_per_text
        if settings.max_tokens_per_text > limit:
            raise ValueError(
                f"config.pbtxt allows {settings.max_tokens_per_text} tokens a text, "
                f"the exported model {limit}: run `bertron export` again"
            )
        self._max_wait_us = settings.max_wait_us
        self._tokenizer = BatchTokenizer(
            path,
            max_tokens_per_text=settings.max_tokens_per_text,
            max_characters_per_text=settings.max_characters_per_text,
            max_characters_per_request=settings.max_characters_per_request,
        )
        model = args["model_name"]
        self._admission = Admission(_entrance(model), queue_age.watched(model))
        garbage.leave_out_what_is_loaded()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer each request with its tokens, or with the error that is its own."""
        with self._admission.working():
            return triton_io.answer_each(
                requests, self._read, self._encode, triton_io.token_response
            )

    def finalize(self) -> None:
        """Take away what lies outside this process."""
        self._admission.close()

    def _read(self, request: Any) -> tuple[Admitted, TextRequest]:
        admitted = self._admission.admit(
            triton_io.may_take_us(request, self._max_wait_us),
            is_for_encoder=triton_io.is_for_encoder(request),
        )
        return admitted, triton_io.read_texts(request)

    def _encode(
        self, requests: list[tuple[Admitted, TextRequest]]
    ) -> list[tuple[TokenBatch, Ticket] | RequestError]:
        batches = self._tokenizer.encode([texts for _, texts in requests])
        return [
            batch
            if isinstance(batch, RequestError)
            else (batch, admitted.ticket(int(batch.token_count.sum())))
            for (admitted, _), batch in zip(requests, batches, strict=True)
        ]


def _entrance(model: str) -> QueueEntrance | None:
    try:
        return QueueEntrance()
    except OSError as error:
        triton_io.log_info(f"{model}: nobody counts what waits for the encoder, since {error}")
        return None
