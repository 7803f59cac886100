"""Our own figures on Locust's web page: two tabs that show the last seconds."""

import json
from argparse import ArgumentParser
from typing import Any

from locust import events
from locust.runners import WorkerRunner

from bertron_loadtest.figures import figures_of
from bertron_loadtest.observation import Observer
from bertron_loadtest.phases import PhaseRecord
from bertron_loadtest.run_record import Run
from bertron_loadtest.samples import Sample, Samples
from bertron_loadtest.users import recorder

_SHOWN_S = 10.0
# Key of a column, its title, and the figure in it; the page renames keys that are not one word.
_ANSWERS = (
    ("calls", "calls/s", "calls_per_s"),
    ("texts", "texts/s", "texts_per_s"),
    ("tokens", "tokens/s", "tokens_per_s"),
    ("median", "p50 ms", "p50_ms"),
    ("high", "p95 ms", "p95_ms"),
    ("higher", "p99 ms", "p99_ms"),
    ("highest", "max ms", "max_ms"),
    ("right", "right", "right"),
    ("wrong", "wrong", "wrong"),
    ("refused", "refused", "refused"),
    ("late", "timed out", "timed_out"),
    ("lost", "disconnected", "disconnected"),
    ("failed", "failed", "failed"),
)
_SERVER = (
    ("network and client, ms a request", "network_ms"),
    ("tokenizer: waiting, ms", "tokenizer_queue_ms"),
    ("tokenizer, ms", "tokenizer_ms"),
    ("bert: waiting for a batch, ms", "bert_queue_ms"),
    ("bert, ms", "bert_ms"),
    ("between the steps, ms", "between_steps_ms"),
    ("the server in all, ms", "server_ms"),
    ("texts in a batch", "batch_texts"),
    ("tokens in a batch", "batch_tokens"),
    ("padding that was not computed, share of a padded batch", "padding_saved"),
)

_observers: list[Observer] = []


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--metrics-url", default="", help="of the server's /metrics, for the page's own tabs"
    )


@events.init.add_listener  # type: ignore[untyped-decorator]
def _extend(environment: Any, **_: Any) -> None:
    if environment.web_ui is None:
        return
    tabs = {
        "answers": ("Bertron: answers", [("name", "last 10 s"), *(row[:2] for row in _ANSWERS)]),
        "server": ("Bertron: server", [("name", "last 10 s"), ("value", "")]),
    }
    environment.web_ui.template_args["extended_tabs"] = [
        {"title": title, "key": key} for key, (title, _) in tabs.items()
    ]
    environment.web_ui.template_args["extended_tables"] = [
        {"key": key, "structure": [{"key": name, "title": shown} for name, shown in columns]}
        for key, (_, columns) in tabs.items()
    ]

    @environment.web_ui.app.after_request  # type: ignore[untyped-decorator]
    def _add_ours(response: Any) -> Any:
        from flask import request

        if request.path == "/stats/requests" and response.status_code == 200:
            ours = [
                {"key": "answers", "data": answers_table()},
                {"key": "server", "data": server_table()},
            ]
            response.set_data(json.dumps({**response.get_json(), "extended_stats": ours}))
        return response


@events.test_start.add_listener  # type: ignore[untyped-decorator]
def _observe(environment: Any, **_: Any) -> None:
    if environment.web_ui is None or isinstance(environment.runner, WorkerRunner):
        return
    options = environment.parsed_options
    is_grpc = all("grpc" in user.caller_name for user in environment.user_classes)
    url = options.grpc_url if is_grpc else options.http_url
    observer = Observer(url, options.model, metrics_url=options.metrics_url or None)
    _observers.append(observer.__enter__())


@events.test_stop.add_listener  # type: ignore[untyped-decorator]
def _stop_observing(**_: Any) -> None:
    while _observers:
        _observers.pop().__exit__(None, None, None)


def answers_table() -> list[dict[str, str]]:
    """Return a row for each caller, and one for all."""
    now_s = recorder.clock.now()
    latest = _latest(now_s - _SHOWN_S)
    callers = sorted({sample.caller for sample in latest})
    rows = [(name, [row for row in latest if row.caller == name]) for name in callers]
    table = []
    for name, samples in [*rows, ("all", latest)]:
        found = _figures(samples, now_s)
        table.append({"name": name} | {key: _shown(found[figure]) for key, _, figure in _ANSWERS})
    return table


def server_table() -> list[dict[str, str]]:
    """Return a row for each figure of the server; "" where it cannot be seen."""
    now_s = recorder.clock.now()
    found = _figures(_latest(now_s - _SHOWN_S), now_s)
    return [{"name": title, "value": _shown(found[figure])} for title, figure in _SERVER]


def _latest(since_s: float) -> list[Sample]:
    latest = []
    for sample in reversed(recorder.samples):
        # Workers report every three seconds, so that ends are not quite in order.
        if sample.due_s + sample.latency_s < since_s - _SHOWN_S:
            break
        latest.append(sample)
    return latest


def _figures(samples: list[Sample], now_s: float) -> dict[str, float | None]:
    phase = PhaseRecord("now", 0, now_s - _SHOWN_S, now_s)
    snapshots = _observers[-1].snapshots[-2 * int(_SHOWN_S) :] if _observers else ()
    run = Run({}, {}, [phase], Samples(samples), sent=len(samples), snapshots=snapshots)
    return figures_of(run, phase)


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"
