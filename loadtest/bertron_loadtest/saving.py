"""Saves a run at its end, from the process that knows all of it."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from locust import events
from locust.runners import WorkerRunner

from bertron_loadtest.run_record import Run
from bertron_loadtest.samples import Samples
from bertron_loadtest.setting import describe_setting
from bertron_loadtest.shape import note_lost_workers
from bertron_loadtest.users import recorder

# What a comparison of two runs wants to know, as ``load.LoadSettings`` names it: Locust's own
# options would drown it.
_SETTINGS = (
    *("model", "workload", "texts", "texts_a_call", "tokens", "seed", "loop", "shape"),
    *("seconds", "warm_up_s", "timeout_s", "known_vectors", "min_cosine"),
)


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def _add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--output-folder", default="", help="where the run is saved at its end")


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _save(environment: Any, **_: Any) -> None:
    options = environment.parsed_options
    if not options.output_folder or isinstance(environment.runner, WorkerRunner):
        return
    note_lost_workers(environment.runner)  # Locust ends a run whose last worker is lost
    settings = {name: getattr(options, name) for name in _SETTINGS}
    users = options.num_users or 1
    is_open = options.loop == "open"
    settings |= {"users": 1 if is_open else users}
    settings |= {"rate": users * options.calls_per_user_s if is_open else 0.0}
    settings["callers"] = [user.caller_name for user in environment.user_classes]
    Run(
        settings=settings,
        setting=describe_setting(),
        phases=recorder.phases,
        samples=Samples(recorder.samples),
        sent=recorder.sent,
        not_sent=recorder.not_sent,
        problem=recorder.problem,
    ).save(Path(options.output_folder))
