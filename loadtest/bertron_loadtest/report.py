"""Locust's CSV files as a table."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

_NUM_TEXTS = re.compile(r"embed (\d+) texts")  # users.NAME_FORMAT
_HEADINGS = ("", "requests", "failures", "texts/s", "p50 ms", "p95 ms", "p99 ms", "max ms")


@dataclass(frozen=True)
class Row:
    """One kind of request; latencies in ms, as Locust rounds them."""

    name: str
    requests: int
    failures: int
    texts_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True)
class Report:
    """What a run gave, the last row being all requests together."""

    rows: Sequence[Row]
    errors: Sequence[str]

    @property
    def is_good(self) -> bool:
        """Whether there were answers, all of them right."""
        return bool(self.rows) and self.rows[-1].requests > 0 and self.rows[-1].failures == 0

    def table(self) -> str:
        """Return the rows under headings, then each kind of failure."""
        cells = [list(_HEADINGS)]
        for row in self.rows:
            latencies = (row.p50_ms, row.p95_ms, row.p99_ms, row.max_ms)
            cells.append(
                [
                    row.name,
                    str(row.requests),
                    str(row.failures),
                    f"{row.texts_per_s:.1f}",
                    *(f"{latency_ms:.0f}" for latency_ms in latencies),
                ]
            )
        widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(widths[column]) if column == 0 else cell.rjust(widths[column])
                for column, cell in enumerate(line)
            )
            for line in cells
        ]
        return "\n".join([*lines, *(f"failed {error}" for error in self.errors)])


def read_report(prefix: Path) -> Report:
    """Read ``PREFIX_final_stats.csv`` and ``PREFIX_final_failures.csv``.

    Raises:
        OSError: Locust did not write them.
    """
    lines = _lines(prefix, "stats")
    rows = [_row(line) for line in lines if line["Name"] != "Aggregated"]
    rows.sort(key=lambda row: (row.name.split(",")[0], _texts_in(row.name)))
    texts_per_s = sum(row.texts_per_s for row in rows)
    rows += [
        replace(_row(line), name="all", texts_per_s=texts_per_s)
        for line in lines
        if line["Name"] == "Aggregated"
    ]
    errors = [
        f"{line['Occurrences']} x {line['Method']}, {line['Name']}: {line['Error']}"
        for line in _lines(prefix, "failures")
    ]
    return Report(rows, errors)


def _row(line: dict[str, str]) -> Row:
    right_per_s = float(line["Requests/s"]) - float(line["Failures/s"])
    return Row(
        name=f"{line['Type']}, {line['Name']}",
        requests=int(line["Request Count"]),
        failures=int(line["Failure Count"]),
        texts_per_s=right_per_s * _texts_in(line["Name"]),
        p50_ms=_number(line["50%"]),
        p95_ms=_number(line["95%"]),
        p99_ms=_number(line["99%"]),
        max_ms=_number(line["Max Response Time"]),
    )


def _texts_in(name: str) -> int:
    match = _NUM_TEXTS.search(name)
    return int(match.group(1)) if match else 0


def _lines(prefix: Path, kind: str) -> list[dict[str, str]]:
    with prefix.with_name(f"{prefix.name}_final_{kind}.csv").open(
        newline="", encoding="utf-8"
    ) as file:
        return list(csv.DictReader(file))


def _number(cell: str) -> float:
    return float(cell) if cell not in ("", "N/A") else 0.0
