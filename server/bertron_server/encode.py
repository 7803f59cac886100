"""`bertron encode`: a file of texts to a file of embeddings, in bounded memory, resumable.

Rows go into OUT.partial as they come and OUT.progress.json says how many are there. Both stay
when a run ends early, and the next run with the same input and options goes on from them. OUT
appears under its name only when it is complete.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bertron_client import BertronError, Client, InvalidInputError
from tqdm import tqdm

from bertron_server.connection import add_connection_arguments, open_client
from bertron_server.words import Words, say

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

INPUT_FORMATS = (".txt", ".csv", ".tsv", ".jsonl")
OUTPUT_FORMATS = ("npy", "jsonl", "parquet")
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

DEFAULT_BATCH = 1024  # 16 full requests of the default model, four rounds of what is in flight
MAX_BATCH_CHARACTERS = 4_000_000  # what is held of the input at a time, whatever --batch says
MAX_LINE_BYTES = 16 * 1024 * 1024  # no text near this length is served
CONVERT_ROWS = 4096  # rows turned into JSON or Parquet at a time
# Two runs of one model differ in the last bits, another model in the first digits.
SAME_MODEL_TOLERANCE = 0.02

_open_memmap: Any = np.lib.format.open_memmap  # numpy has no annotations for it


class EncodeError(Exception):
    """What ends the run; the message is the line that the user reads."""


@dataclass(frozen=True)
class Record:
    """One text and where it stands."""

    line: int
    text: str


@dataclass(frozen=True)
class Plan:
    """What must be the same for a run to go on where another stopped."""

    input_sha256: str
    input_bytes: int
    rows: int
    column: str
    format: str
    model: str
    truncate: str
    embedding_size: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("file", type=Path, metavar="FILE", help="texts: .txt, .csv, .tsv or .jsonl")
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="file to write")
    add_connection_arguments(
        parser, url="grpc://127.0.0.1:8001", timeout_s=120.0, timeout_of="for each batch"
    )
    parser.add_argument(
        "--column", default="text", metavar="NAME", help="column or field (default: text)"
    )
    parser.add_argument(
        "--format", choices=OUTPUT_FORMATS, help="of OUT (default: by its extension)"
    )
    parser.add_argument(
        "--truncate",
        choices=("right", "left", "error"),
        default="right",
        help="end of a too long text to cut, or refuse it (default: right)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=DEFAULT_BATCH,
        metavar="N",
        help=f"texts between two saves (default: {DEFAULT_BATCH})",
    )


def run(args: argparse.Namespace) -> int:
    """Encode the file and return the exit code."""
    try:
        _encode(args)
    except EncodeError as error:
        return _fail(str(error))
    except (BertronError, ValueError) as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename or args.output}: {error.strerror or error}")
    except KeyboardInterrupt:
        _fail("interrupted; run the same command again to continue")
        return EXIT_INTERRUPTED
    return 0


def _fail(message: str) -> int:
    say(sys.stderr, f"bertron encode: {' '.join(message.split())}\n")
    return EXIT_FAILURE


def _encode(args: argparse.Namespace) -> None:
    form = _output_format(args)
    if args.batch < 1:
        raise EncodeError(f"--batch is {args.batch}, it must be at least 1")
    _refuse_existing(args.output)
    if not args.output.absolute().parent.is_dir():
        raise EncodeError(f"{args.output.parent} is not a directory")
    stamp = _stamp(args.file)
    digest = hashlib.sha256()
    rows = longest = 0
    for record in read_records(args.file, args.column, digest.update):
        rows += 1
        longest = max(longest, len(record.text))
    with open_client(args) as client:
        info = client.server_info()
        limit = info.max_characters_per_text
        if limit is not None and longest > limit:
            _refuse_too_long(args, limit)
        plan = Plan(
            input_sha256=digest.hexdigest(),
            input_bytes=stamp[0],
            rows=rows,
            column=args.column,
            format=form,
            model=args.model,
            truncate=args.truncate,
            embedding_size=info.embedding_size,
        )
        with _only_run(args.output):
            partial = PartialOutput(args.output, plan)
            _check_model(client, args, partial)
            with _progress_bar(rows, partial.rows_done) as bar:
                for batch in _batches(args, partial.rows_done):
                    partial.append(_embed(client, args, batch, partial))
                    bar.update(len(batch))
            if _stamp(args.file) != stamp or partial.rows_done != rows:
                raise EncodeError(f"{args.file} changed while it was read; start again")
            partial.finish()


def _refuse_existing(output: Path) -> None:
    if output.exists():
        raise EncodeError(f"{output} exists; remove it or name another --output")


def _progress_bar(rows: int, rows_done: int) -> Any:
    return tqdm(
        total=rows,
        initial=rows_done,
        unit="text",
        file=Words(sys.stderr),
        dynamic_ncols=True,  # tqdm looks for the width of sys.stderr alone, unless it is told to
        disable=sys.stderr is None,
    )


def _output_format(args: argparse.Namespace) -> str:
    form = str(args.format or args.output.suffix.lstrip(".").lower())
    if form not in OUTPUT_FORMATS:
        raise EncodeError(
            f"{args.output}: give it one of the extensions .{', .'.join(OUTPUT_FORMATS)}, "
            "or name a --format"
        )
    if form == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise EncodeError(
                f"parquet needs the package pyarrow ({error}); run `pip install 'bertron[parquet]'`"
            ) from error
    return form


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change, which tell that a file is still the one that was read."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


# Reading


def read_records(
    path: Path, column: str, update: Callable[[bytes], object] = lambda _: None
) -> Iterator[Record]:
    """Yield the texts of a file.

    Args:
        path: .txt has a text a line, empty lines included; .csv and .tsv have a header line;
            .jsonl has an object a line. UTF-8.
        column: Column or field that holds the text; not used for .txt.
        update: Is given each line's bytes, for a checksum.

    Raises:
        EncodeError: With file and line of what cannot be read.
    """
    lines = _decoded_lines(path, update)
    suffix = path.suffix.lower()
    if suffix == ".txt":
        return (Record(number, line.rstrip("\r\n")) for number, line in lines)
    if suffix in (".csv", ".tsv"):
        return _csv_records(path, column, lines, "," if suffix == ".csv" else "\t")
    if suffix == ".jsonl":
        return _jsonl_records(path, column, lines)
    raise EncodeError(f"{path}: the extension must be one of {', '.join(INPUT_FORMATS)}")


def _decoded_lines(path: Path, update: Callable[[bytes], object]) -> Iterator[tuple[int, str]]:
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            update(raw)
            if len(raw) > MAX_LINE_BYTES:
                raise EncodeError(f"{path} line {number}: longer than {MAX_LINE_BYTES} bytes")
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise EncodeError(
                    f"{path} line {number}: not UTF-8, byte 0x{raw[error.start]:02x} at position "
                    f"{error.start}"
                ) from None
            yield number, line


def _csv_records(
    path: Path, column: str, lines: Iterator[tuple[int, str]], delimiter: str
) -> Iterator[Record]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader((line for _, line in lines), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            raise EncodeError(f"{path}: empty, a header line is wanted")
        if column not in header:
            raise EncodeError(f"{path}: no column '{column}', only {', '.join(header)}")
        position = header.index(column)
        for row in reader:
            if not row:
                continue  # an empty line, as csv.DictReader takes it
            if len(row) != len(header):
                raise EncodeError(
                    f"{path} line {reader.line_num}: {len(row)} columns, the header has "
                    f"{len(header)}"
                )
            yield Record(reader.line_num, row[position])
    except csv.Error as error:
        raise EncodeError(f"{path} line {reader.line_num}: {error}") from None


def _jsonl_records(path: Path, column: str, lines: Iterator[tuple[int, str]]) -> Iterator[Record]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise EncodeError(f"{path} line {number}: not JSON: {error}") from None
        if not isinstance(value, dict) or not isinstance(value.get(column), str):
            raise EncodeError(f"{path} line {number}: no string in a field '{column}'")
        yield Record(number, value[column])


def _batches(args: argparse.Namespace, skip: int) -> Iterator[list[Record]]:
    """Texts from row ``skip`` on, in lists of at most ``--batch``."""
    batch: list[Record] = []
    characters = 0
    for row, record in enumerate(read_records(args.file, args.column)):
        if row < skip:
            continue
        batch.append(record)
        characters += len(record.text)
        if len(batch) == args.batch or characters >= MAX_BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _refuse_too_long(args: argparse.Namespace, limit: int) -> None:
    """Name the first text of more than ``limit`` characters, and how many there are."""
    records = read_records(args.file, args.column)
    too_long = [(record.line, len(record.text)) for record in records if len(record.text) > limit]
    if too_long:
        line, characters = too_long[0]
        raise EncodeError(
            f"{args.file} line {line}: the text has {characters} characters, the server takes at "
            f"most {limit}; texts that are too long: {len(too_long)}"
        )


# Encoding


def _embed(
    client: Client, args: argparse.Namespace, batch: list[Record], partial: "PartialOutput"
) -> Any:
    try:
        return client.embed([record.text for record in batch], truncate=args.truncate)
    except InvalidInputError as error:
        if error.index is None:
            raise
        raise EncodeError(f"{args.file} line {batch[error.index].line}: {error}") from error
    except BertronError as error:
        raise EncodeError(
            f"{args.file} lines {batch[0].line} to {batch[-1].line}: {error}; {partial.rows_done} "
            f"of {partial.plan.rows} rows are kept, run the same command again to continue"
        ) from error


def _check_model(client: Client, args: argparse.Namespace, partial: "PartialOutput") -> None:
    """Refuse to put rows of one model behind rows of another."""
    if partial.rows_done == 0:
        return
    first = next(_batches(args, 0))[:1]
    now = np.asarray(_embed(client, args, first, partial))[0]
    if not np.allclose(now, partial.vectors[0], rtol=0, atol=SAME_MODEL_TOLERANCE):
        raise EncodeError(
            f"the server at {args.url} answers line {first[0].line} with another embedding than "
            f"in the interrupted run: another model? {partial.how_to_start_again}"
        )


# Writing


def _array_path(output: Path) -> Path:
    return output.with_name(output.name + ".partial")


@contextlib.contextmanager
def _only_run(output: Path) -> Iterator[None]:
    """Refuse to write what another process is writing."""
    if fcntl is None:
        yield
        return
    path = _array_path(output)
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until the process ends, however
        except BlockingIOError:
            raise EncodeError(f"another run is writing {output}; name another --output") from None
        except OSError:  # a file system without locks
            pass
        if file.tell() == 0 and output.exists():  # the other run has just ended
            path.unlink(missing_ok=True)
        _refuse_existing(output)
        yield


class PartialOutput:
    """OUT while it is written: a memory-mapped array of rows, and how many of them are there.

    The array is the output itself for npy; JSON Lines and Parquet are made of it at the end,
    since neither can be continued after a kill.
    """

    def __init__(self, output: Path, plan: Plan) -> None:
        self.plan = plan
        self._output = output
        self._array_path = _array_path(output)
        self._progress_path = output.with_name(output.name + ".progress.json")
        self.rows_done = self._rows_kept()
        dtype: Any = np.dtype("<f4")
        shape: tuple[int, ...] = (plan.rows, plan.embedding_size)
        if plan.format != "npy":
            dtype = np.dtype(
                [
                    ("embedding", "<f4", (plan.embedding_size,)),
                    ("token_count", "<i4"),
                    ("truncated", "?"),
                ]
            )
            shape = (plan.rows,)
        if self.rows_done:
            self._array = _open_memmap(self._array_path, mode="r+")
            if self._array.dtype != dtype or self._array.shape != shape:
                raise EncodeError(
                    f"{self._array_path} is not of this run; {self.how_to_start_again}"
                )
        else:
            self._array = _open_memmap(self._array_path, mode="w+", dtype=dtype, shape=shape)
            self._reserve()

    @property
    def vectors(self) -> Any:
        """[N, E] float32, of which ``rows_done`` are there."""
        return self._array if self.plan.format == "npy" else self._array["embedding"]

    @property
    def how_to_start_again(self) -> str:
        """Advice for the end of an error message."""
        return f"to start again remove {self._array_path} and {self._progress_path}"

    def append(self, embeddings: Any) -> None:
        """Keep the next rows, also when the process is killed right after."""
        rows = slice(self.rows_done, self.rows_done + len(embeddings))
        if rows.stop > self.plan.rows:
            raise EncodeError("the input grew while it was read; start again")
        self.vectors[rows] = embeddings.vectors
        if self.plan.format != "npy":
            self._array["token_count"][rows] = embeddings.token_counts
            self._array["truncated"][rows] = embeddings.truncated
        self._array.flush()
        self.rows_done = rows.stop
        progress = {"rows_done": self.rows_done, "plan": asdict(self.plan)}
        with _replacing(self._progress_path) as path:
            path.write_text(json.dumps(progress, indent=1), encoding="utf-8")

    def finish(self) -> None:
        """Give the complete output its name and remove what helped to make it."""
        if self.plan.format == "npy":
            _sync(self._array_path)
            self._array_path.replace(self._output)
        else:
            write = _write_jsonl if self.plan.format == "jsonl" else _write_parquet
            with _replacing(self._output) as path:
                write(path, self._array)
        self._progress_path.unlink(missing_ok=True)
        self._array_path.unlink(missing_ok=True)

    def _rows_kept(self) -> int:
        """Rows of an interrupted run with the same plan; 0 where there is none."""
        if not (self._progress_path.exists() and self._array_path.exists()):
            return 0
        if self._array_path.stat().st_size == 0:  # `_only_run` made it just now
            return 0
        try:
            progress = json.loads(self._progress_path.read_text(encoding="utf-8"))
            kept, rows_done = dict(progress["plan"]), int(progress["rows_done"])
        except (ValueError, KeyError, TypeError) as error:
            raise EncodeError(
                f"{self._progress_path} cannot be read ({error}); {self.how_to_start_again}"
            ) from None
        for name, value in asdict(self.plan).items():
            if kept.get(name) != value:
                raise EncodeError(
                    f"the interrupted run had {name} {kept.get(name)}, this one has {value}; "
                    f"{self.how_to_start_again}"
                )
        return rows_done

    def _reserve(self) -> None:
        """Take the disk space now: a full disk under a memory map kills the process unheard."""
        if hasattr(os, "posix_fallocate"):
            with self._array_path.open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    os.posix_fallocate(file.fileno(), 0, size)
                except OSError as error:
                    self._array_path.unlink()
                    raise EncodeError(
                        f"{self._array_path}: no room for {size} bytes: {error.strerror}"
                    ) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a path to write to; what was written there takes the name ``path`` at once or never."""
    temporary = path.with_name(path.name + ".new")
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _write_jsonl(path: Path, rows: Any) -> None:
    """One object a line; nine digits give back the same float32."""
    if len(rows) == 0:
        path.touch()
        return
    numbers = ", ".join(["%.9g"] * rows.dtype["embedding"].shape[0])
    line = f'{{"index": %d, "embedding": [{numbers}], "token_count": %d, "truncated": %s}}\n'
    with path.open("w", encoding="ascii") as file:
        for index, row in enumerate(rows):
            truncated = "true" if row["truncated"] else "false"
            file.write(line % (index, *row["embedding"].tolist(), row["token_count"], truncated))


def _write_parquet(path: Path, rows: Any) -> None:
    """Columns index, embedding (fixed-size list of float32), token_count, truncated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = rows.dtype["embedding"].shape[0]
    schema = pa.schema(
        [
            ("index", pa.int64()),
            ("embedding", pa.list_(pa.float32(), size)),
            ("token_count", pa.int32()),
            ("truncated", pa.bool_()),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, len(rows), CONVERT_ROWS):
            part = rows[start : start + CONVERT_ROWS]
            flat = pa.array(np.ascontiguousarray(part["embedding"]).ravel())
            columns = [
                pa.array(np.arange(start, start + len(part))),
                pa.FixedSizeListArray.from_arrays(flat, size),
                pa.array(np.ascontiguousarray(part["token_count"])),
                pa.array(np.ascontiguousarray(part["truncated"])),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
