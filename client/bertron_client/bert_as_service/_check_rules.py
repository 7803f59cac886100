"""What each name of bert-as-service 1.10 becomes here: the tables that the checker looks up.

docs/coming-from-bert-as-service.md says the same at length, and tests hold the two together.
"""

from __future__ import annotations

from enum import Enum
from typing import Dict, NamedTuple, Optional


class Kind(Enum):
    """How much a finding asks of its reader."""

    SAME = "same"  # nothing
    DIFFERS = "differs"  # to know it; the program runs as it is
    IMPORT = "import"  # to rename
    CHANGE = "change"  # to write something else


class Rule(NamedTuple):
    """What something becomes."""

    kind: Kind
    becomes: str


OUR_MODULE = "bertron_client.bert_as_service"
CLIENT_CLASSES = ("BertClient", "ConcurrentBertClient")

# By the module of bert_serving, the names that a program may import from it.
NAMES: Dict[str, Dict[str, Rule]] = {
    "bert_serving.client": {
        name: Rule(Kind.IMPORT, f"from {OUR_MODULE} import {name}")
        for name in (*CLIENT_CLASSES, "Response")
    },
    "bert_serving.server.graph": {
        "PoolingStrategy": Rule(Kind.IMPORT, f"from {OUR_MODULE} import PoolingStrategy"),
    },
    "bert_serving.server": {
        "BertServer": Rule(Kind.CHANGE, "bertron_server.server.TritonServer, or `bertron serve`"),
    },
    "bert_serving.server.helper": {
        name: Rule(Kind.CHANGE, "the options of `bertron export` and `bertron serve`")
        for name in ("get_args_parser", "get_run_args", "get_benchmark_parser")
    },
}
NAMES["bert_serving.server.helper"]["get_shutdown_parser"] = Rule(
    Kind.CHANGE, "TritonServer.stop(), or SIGTERM"
)
UNKNOWN_NAME = Rule(Kind.CHANGE, "there is no counterpart")

_NO_CHECK = Rule(Kind.SAME, "accepted and ignored")
# In their order in 1.10, for arguments given by position.
CONSTRUCTOR: Dict[str, Rule] = {
    "ip": Rule(Kind.SAME, "as before; url= in its place for TLS"),
    "port": Rule(Kind.DIFFERS, "the server's gRPC port, 8001 unless `bertron serve` says another"),
    "port_out": Rule(Kind.SAME, "accepted and ignored: answers come back the way they were asked"),
    "output_fmt": Rule(Kind.SAME, "as before"),
    "show_server_config": Rule(Kind.DIFFERS, "as before, with fewer keys"),
    "identity": Rule(Kind.CHANGE, "answers are not shared by identity: hand them on yourself"),
    "check_version": _NO_CHECK,
    "check_length": Rule(Kind.SAME, "warns of cut texts, counted in tokens rather than words"),
    "check_token_info": _NO_CHECK,
    "ignore_all_checks": Rule(Kind.SAME, "the same as check_length=False"),
    "timeout": Rule(Kind.DIFFERS, "milliseconds for the whole call; -1 is a day"),
}
OLD_PORTS = (5555, 5556)
OLD_PORT = Rule(
    Kind.CHANGE, "leave it out for 8001, or start the server with `bertron serve --grpc-port`"
)
MAX_CONCURRENCY = Rule(Kind.SAME, "as before; further calls wait instead of failing")

METHODS: Dict[str, Rule] = {
    "encode": Rule(Kind.SAME, "as before, with errors where 1.10 waited for ever"),
    "encode_async": Rule(Kind.DIFFERS, "reads from the first next() on, a bounded number ahead"),
    "fetch": Rule(Kind.DIFFERS, "as before; a failed request raises its error"),
    "fetch_all": Rule(Kind.DIFFERS, "an empty list in place of None when nothing is pending"),
    "server_config": Rule(Kind.DIFFERS, "as before, with fewer keys"),
    "server_status": Rule(Kind.DIFFERS, "as before, with fewer keys"),
    "status": Rule(Kind.SAME, "as before"),
    "close": Rule(Kind.SAME, "as before"),
}
UNKNOWN_METHOD = Rule(Kind.CHANGE, "1.10 has no such method, and neither is there one here")

SERVER_KEYS = (
    "server_version",
    "max_batch_size",
    "max_seq_len",
    "pooling_strategy",
    "fp16",
    "cpu",
    "show_tokens_to_client",
    "statistic",
)
STATISTIC_KEYS = ("num_data_request", "num_total_seq", "avg_size_per_request")
UNKNOWN_KEY = Rule(Kind.CHANGE, "not told here; Prometheus metrics are at the server's port 8002")

COMMANDS: Dict[str, Rule] = {
    "bert-serving-start": Rule(Kind.CHANGE, "`bertron export` once, then `bertron serve`"),
    "bert-serving-terminate": Rule(Kind.CHANGE, "SIGTERM, or Ctrl-C"),
    "bert-serving-benchmark": Rule(Kind.CHANGE, "`make bench` and `make loadtest`"),
    "bert-serving-server": Rule(Kind.CHANGE, "install bertron[server,export]"),
    "bert-serving-client": Rule(Kind.CHANGE, "install bertron"),
}

HTTP_ROUTES: Dict[str, Rule] = {
    "/encode": Rule(Kind.CHANGE, "POST /v2/models/text_embedding/infer, in KServe v2's form"),
    "/status/server": Rule(Kind.CHANGE, "GET /v2/models/text_embedding/config and .../stats"),
    "/status/client": Rule(Kind.CHANGE, "there is no proxy, and so no client of one"),
}

_NOTHING = "leave it out: "
# By the flag without its dash. All are Kind.CHANGE, as the command itself changes.
FLAGS: Dict[str, str] = {
    "model_dir": "`bertron export DIR`, a Hugging Face directory",
    "tuned_model_dir": "`bertron export TUNED_DIR`",
    "ckpt_name": _NOTHING + "safetensors in the directory are found; TensorFlow's are not read",
    "config_name": _NOTHING + "config.json in the directory",
    "graph_tmp_dir": _NOTHING + "the exported model stays in the model repository",
    "max_seq_len": "`bertron export --max-tokens`; the default is the model's own, not 25",
    "cased_tokenization": _NOTHING + "tokenizer.json says it",
    "pooling_layer": "`bertron export --pooling-layer`, one layer; the default is -1, not -2",
    "pooling_strategy": "`bertron export --pooling`",
    "mask_cls_sep": "not here: [CLS] and [SEP] are pooled with the others",
    "no_special_token": "not here: special tokens are always added",
    "show_tokens_to_client": _NOTHING + "tokens can always be asked for",
    "no_position_embeddings": "not here",
    "num_labels": "not here: no classification",
    "port": "`bertron serve --grpc-port`",
    "port_out": _NOTHING + "one port for both ways",
    "http_port": "`bertron serve --http-port`, on by default at 8000",
    "http_max_connect": _NOTHING + "HTTP has no such limit",
    "cors": "not here: a proxy in front sets it",
    "num_worker": "count of instance_group in the config.pbtxt of `bert`",
    "max_batch_size": "max_batch_size in the config.pbtxt of `bert`",
    "priority_batch_size": _NOTHING + "small requests join the batches of others",
    "cpu": "KIND_CPU in instance_group in the config.pbtxt of `bert`",
    "xla": _NOTHING + "the kernels are compiled ones",
    "fp16": "`bertron export --dtype float16`; answers are float32 all the same",
    "gpu_memory_fraction": _NOTHING + "memory is taken as it is needed",
    "device_map": "gpus of instance_group in the config.pbtxt of `bert`",
    "prefetch_size": _NOTHING + "the batcher has the next batch ready",
    "fixed_embed_length": "not here: no embeddings of single tokens",
    "verbose": "`bertron serve -- --log-verbose=1`",
    "version": "`--version` of `bertron`",
}
FLAG_ALIASES = {
    "port_in": "port",
    "port_data": "port",
    "port_result": "port_out",
}


def flag_named(name: str) -> Optional[str]:
    """Return the flag that 1.10 takes ``name`` for; it took any prefix that only one flag has."""
    if name in FLAGS:
        return name
    fitting = [flag for flag in (*FLAGS, *FLAG_ALIASES) if flag.startswith(name)]
    found = {FLAG_ALIASES.get(flag, flag) for flag in fitting}
    return found.pop() if len(found) == 1 else None
