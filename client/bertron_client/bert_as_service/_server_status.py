"""What the server says of itself, under the names that bert-as-service has for it.

A name of 1.10 that has no meaning here is left out, and so is one whose value the server does not
tell; nothing is made up.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Dict, Mapping

from .._models import ModelStatistics, ServerInfo


class PoolingStrategy(IntEnum):
    """How token vectors become one; the numbers are those of 1.10's status."""

    NONE = 0
    REDUCE_MAX = 1
    REDUCE_MEAN = 2
    REDUCE_MEAN_MAX = 3
    FIRST_TOKEN = 4
    LAST_TOKEN = 5
    CLS_TOKEN = 4  # the same under the name of what stands there
    SEP_TOKEN = 5
    CLS_POOLED = 6
    CLASSIFICATION = 7
    REGRESSION = 8

    def __str__(self) -> str:
        return self.name


# By `--pooling` of `bertron export`.
POOLING_STRATEGIES = {
    "max": PoolingStrategy.REDUCE_MAX,
    "mean": PoolingStrategy.REDUCE_MEAN,
    "mean-max": PoolingStrategy.REDUCE_MEAN_MAX,
    "cls": PoolingStrategy.FIRST_TOKEN,
    "last": PoolingStrategy.LAST_TOKEN,
}


def server_config(info: ServerInfo) -> Dict[str, Any]:
    """Return the part of 1.10's ``SHOW_CONFIG`` that exists here."""
    told = {
        "server_version": info.server_version,
        "max_batch_size": info.max_batch_size,
        "max_seq_len": info.max_tokens_per_text,
        "pooling_strategy": POOLING_STRATEGIES.get(info.pooling or ""),
        "fp16": None if info.dtype is None else info.dtype == "float16",
        "cpu": None if info.device is None else info.device == "cpu",
        "show_tokens_to_client": True,
    }
    return {name: value for name, value in told.items() if value is not None}


def statistic(statistics: Mapping[str, ModelStatistics], model: str) -> Dict[str, Any]:
    """Return the part of 1.10's ``statistic`` that exists here; it counts since the model's load.

    A list that the client split counts as several requests.
    """
    of_model = statistics.get(model)
    if of_model is None:
        return {}
    requests = of_model.requests_succeeded + of_model.requests_failed
    numbers: Dict[str, Any] = {
        "num_data_request": requests,
        "num_total_seq": of_model.inferences,
    }
    if of_model.requests_succeeded:
        numbers["avg_size_per_request"] = of_model.inferences / of_model.requests_succeeded
    return numbers
