"""The command ``run``: put a server under load, report how it went, and judge it."""

import argparse
import contextlib
import datetime
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from bertron_loadtest.answers import MIN_COSINE
from bertron_loadtest.callers import CALLERS
from bertron_loadtest.load import LOOPS, LoadSettings, ServerPlace, run_load
from bertron_loadtest.phases import SHAPES
from bertron_loadtest.report import text_summary, write_report
from bertron_loadtest.run_record import Run
from bertron_loadtest.thresholds import judge, read_thresholds
from bertron_loadtest.workload import BERT_AS_SERVICE_TOKENS, WORKLOADS

RUNS_FOLDER = Path("build") / "loadtest"
LIMITS = Path(__file__).with_name("limits")
THRESHOLDS = LIMITS / "any.toml"
MODEL_REPOSITORY = Path("model_repository")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    server = parser.add_argument_group("the server")
    add_server_arguments(server)
    server.add_argument("--metrics-url", metavar="URL", help="of its /metrics, with --url")
    server.add_argument(
        "--server-pid", type=int, help="of tritonserver on this machine, with --url"
    )
    load = parser.add_argument_group("the load")
    add_load_arguments(load)
    load.add_argument(
        "--caller",
        action="append",
        choices=CALLERS,
        help="may be repeated; default: the SDK over each protocol that has a url",
    )
    load.add_argument("--loop", choices=LOOPS, default="closed")
    load.add_argument("--users", type=int, default=32, help="of a closed loop (default: 32)")
    load.add_argument("--rate", type=float, default=0.0, help="calls a second of an open loop")
    load.add_argument("--shape", choices=SHAPES, default="steady")
    load.add_argument("--seconds", type=float, default=60.0, help="of load (default: 60)")
    load.add_argument("--warm-up-s", type=float, default=3.0, help="before it (default: 3)")
    load.add_argument("--timeout-s", type=float, default=30.0, help="of a call (default: 30)")
    load.add_argument("--workers", type=int, default=0, help="processes; 0 (default): just one")
    judging = parser.add_argument_group("the judging")
    judging.add_argument(
        "--known-vectors", type=Path, help=".npz that answers must agree with; see README"
    )
    judging.add_argument("--min-cosine", type=float, default=MIN_COSINE, help="with those")
    judging.add_argument("--thresholds", type=Path, default=THRESHOLDS, help="TOML file")
    judging.add_argument("--baseline", type=Path, metavar="RUN", help="folder of an earlier run")
    judging.add_argument("--output", type=Path, metavar="RUN", help="folder; default: a new one")


def add_server_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add which server, for every command that needs one."""
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="grpc://HOST:PORT or http://HOST:PORT, or one of each; "
        "without it a server is started for the run",
    )
    parser.add_argument("--model", default="text_embedding", help="name of the served model")
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=MODEL_REPOSITORY,
        help="of the server that is started (default: model_repository)",
    )


def add_load_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add what is asked of it."""
    parser.add_argument("--workload", choices=WORKLOADS, default="short")
    parser.add_argument("--texts", type=Path, help="file with a text a line; default: a sample")
    parser.add_argument(
        "--texts-a-call",
        type=sizes,
        default=(),
        metavar="1,8,32",
        help="one of them at random; default: the workload's",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=BERT_AS_SERVICE_TOKENS,
        help="of a text in bert-as-service (default: 40)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the workload (default: 0)")


def sizes(words: str) -> tuple[int, ...]:
    """Read ``1,8,32``.

    Raises:
        argparse.ArgumentTypeError: Something else.
    """
    try:
        parsed = tuple(int(word) for word in words.split(","))
    except ValueError:
        parsed = ()
    if not parsed or min(parsed) < 1:
        raise argparse.ArgumentTypeError(f"{words!r} are no numbers from 1 on with commas")
    return parsed


def main(args: argparse.Namespace) -> int:
    """Make the run; 0 if every threshold was kept."""
    thresholds = read_thresholds(args.thresholds)
    baseline = Run.load(args.baseline) if args.baseline else None
    schemes = tuple(urls_by_scheme(args.url)) if args.url else ("grpc", "http")
    settings = LoadSettings(
        callers=tuple(args.caller or schemes),
        model=args.model,
        workload=args.workload,
        texts=args.texts,
        texts_a_call=args.texts_a_call,
        tokens=args.tokens,
        seed=args.seed,
        loop=args.loop,
        users=args.users,
        rate=args.rate,
        shape=args.shape,
        seconds=args.seconds,
        warm_up_s=args.warm_up_s,
        timeout_s=args.timeout_s,
        known_vectors=args.known_vectors,
        min_cosine=args.min_cosine,
        workers=args.workers,
    )
    folder = args.output or new_folder(f"{settings.workload}-{settings.shape}")
    with server_place(args) as place:
        missing = {CALLERS[name].scheme for name in settings.callers} - place.urls.keys()
        if missing:
            raise ValueError(f"--caller wants a {' and a '.join(sorted(missing))} url as well")
        load = f"{settings.rate:g} calls/s" if settings.rate else f"{settings.users} users"
        say(f"{load} for {settings.seconds:g} s on {', '.join(place.urls.values())}")
        run = run_load(settings, place, folder)
    verdicts = judge(run, thresholds, baseline)
    write_report(run, folder, verdicts, baseline)
    say(text_summary(run, verdicts))
    say(f"report: {folder / 'report.html'}")
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def new_folder(name: str) -> Path:
    """Return a folder for a run that there is not yet, named for the time and ``name``."""
    time = datetime.datetime.now(tz=datetime.UTC).strftime("%Y%m%d-%H%M%S")
    return RUNS_FOLDER / f"{time}-{name}"


@contextlib.contextmanager
def server_place(args: argparse.Namespace) -> Iterator[ServerPlace]:
    """The server under test, started here if no ``--url`` names one.

    Raises:
        ValueError: The urls are not one of each protocol at most, or the server does not start.
    """
    if args.url:
        seen = getattr(args, "metrics_url", None), getattr(args, "server_pid", None)
        yield ServerPlace(urls_by_scheme(args.url), *seen)
        return
    with started_server(args.model_repository) as place:
        yield place


def urls_by_scheme(urls: Sequence[str]) -> dict[str, str]:
    """Return the urls by their schemes.

    Raises:
        ValueError: They are not one of each protocol at most.
    """
    by_scheme = {urlsplit(url).scheme: url for url in urls}
    if len(by_scheme) != len(urls) or not by_scheme.keys() <= {"grpc", "http"}:
        raise ValueError(
            f"--url is {', '.join(urls)}; one grpc://HOST:PORT, one http://HOST:PORT or "
            "one of each is wanted"
        )
    return by_scheme


@contextlib.contextmanager
def started_server(model_repository: Path, *flags: str) -> Iterator[ServerPlace]:
    """A server of our own on free ports, with further ``flags`` of tritonserver.

    Raises:
        ValueError: It does not start.
    """
    from bertron_server.errors import TritonServerError
    from bertron_server.server import TritonServer

    try:
        with TritonServer(model_repository, extra_args=flags) as server:
            yield ServerPlace(
                {"grpc": server.grpc_url, "http": server.http_url},
                server.metrics_url,
                server.pid,
            )
    except TritonServerError as error:
        raise ValueError(str(error)) from error


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
