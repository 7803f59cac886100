"""Put a server under load for a while and tell how it went: ``python -m bertron_loadtest``.

The exit code is 0 only if there were answers and every one of them was right.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from bertron_loadtest.report import read_report
from bertron_loadtest.workload import SAMPLE_TEXTS, parse_batch_sizes, read_texts

LOADTEST_FOLDER = Path(__file__).resolve().parent.parent
USERS = {"grpc": "GrpcUser", "http": "HttpUser"}
STOP_TIMEOUT_S = 10  # for requests in flight when the time is up
OVERTIME_S = 45  # start of Locust, known vectors, stop; beyond it Locust is killed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the load test and return the exit code."""
    args = _parser().parse_args(argv)
    try:
        read_texts(args.texts)
        parse_batch_sizes(args.batch_sizes)
        with _urls(args) as urls, tempfile.TemporaryDirectory(prefix="bertron-loadtest-") as folder:
            return _run(args, urls, (args.csv or Path(folder) / "run").absolute())
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return _fail("interrupted") + 129  # 130, as shells count an interrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bertron_loadtest", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--seconds", type=int, default=60, help="of load (default: 60)")
    parser.add_argument("--users", type=int, default=32, help="at a time (default: 32)")
    parser.add_argument(
        "--url",
        action="append",
        metavar="URL",
        help="grpc://HOST:PORT or http://HOST:PORT, or one of each; "
        "without it a server is started for the test",
    )
    parser.add_argument("--model", default="text_embedding", help="name of the served model")
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=LOADTEST_FOLDER.parent / "model_repository",
        help="of the server that is started",
    )
    parser.add_argument("--texts", type=Path, default=SAMPLE_TEXTS, help="file with a text a line")
    parser.add_argument("--batch-sizes", default="1,8,32", help="texts a request (default: 1,8,32)")
    parser.add_argument("--seed", type=int, default=0, help="of the workload (default: 0)")
    parser.add_argument("--csv", type=Path, metavar="PREFIX", help="keep Locust's CSV files")
    return parser


def _fail(message: str) -> int:
    sys.stderr.write(f"bertron_loadtest: {message}\n")
    return 1


@contextlib.contextmanager
def _urls(args: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Protocol and url of the server under test, started here if none was named."""
    if args.url:
        urls = {url.partition("://")[0]: url for url in args.url}
        if len(urls) != len(args.url) or not urls.keys() <= USERS.keys():
            raise ValueError(
                f"--url is {', '.join(args.url)}; one grpc://HOST:PORT, one http://HOST:PORT or "
                "one of each is wanted"
            )
        yield urls
        return
    from bertron_server.errors import TritonServerError
    from bertron_server.server import TritonServer

    try:
        with TritonServer(model_repository=args.model_repository) as server:
            yield {"grpc": server.grpc_url, "http": server.http_url}
    except TritonServerError as error:
        raise ValueError(str(error)) from error


def _run(args: argparse.Namespace, urls: dict[str, str], prefix: Path) -> int:
    sys.stdout.write(f"{args.users} users for {args.seconds} s on {', '.join(urls.values())}\n")
    sys.stdout.flush()
    command = _locust_command(args, urls, prefix)
    with tempfile.TemporaryFile() as words:
        exit_code = _run_locust(command, args.seconds + OVERTIME_S, words)
        words.seek(0)
        said = words.read().decode("utf-8", "replace")
    if exit_code is None:
        return _fail(f"Locust had not ended {OVERTIME_S} s after its time and was killed")
    try:
        report = read_report(prefix)
    except OSError:
        return _fail(f"Locust ended with {exit_code} and no result:\n{said[-2000:]}")
    sys.stdout.write(report.table() + "\n")
    if not report.is_good:
        return _fail("not every answer was right" if report.rows[-1].requests else "no answers")
    return exit_code


def _locust_command(args: argparse.Namespace, urls: dict[str, str], prefix: Path) -> list[str]:
    command = [sys.executable, "-m", "locust", "--locustfile", "locustfile.py", "--headless"]
    command += ["--users", str(args.users), "--spawn-rate", str(args.users)]
    command += ["--run-time", f"{args.seconds}s", "--stop-timeout", f"{STOP_TIMEOUT_S}s"]
    command += ["--csv", str(prefix), "--only-summary", "--loglevel", "WARNING"]
    command += ["--exit-code-on-error", "1", "--model", args.model, "--seed", str(args.seed)]
    command += ["--texts", str(args.texts.absolute()), "--batch-sizes", args.batch_sizes]
    for protocol, url in urls.items():
        command += [f"--{protocol}-url", url]
    return [*command, *(USERS[protocol] for protocol in urls)]


def _run_locust(command: list[str], limit_s: float, words: IO[bytes]) -> int | None:
    """Return Locust's exit code, or None if it had to be killed."""
    process = subprocess.Popen(
        command,
        cwd=LOADTEST_FOLDER,
        stdout=subprocess.DEVNULL,  # its summary, which the table repeats
        stderr=words,
        start_new_session=True,
    )
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
