"""Limits that decide whether a run passed: a TOML file, a table for each phase.

    [steady]
    p99_ms = { max = 200, max_times_baseline = 1.5 }

A check that cannot fail is none: a figure that cannot be known fails its limit, and so does
everything where there were no calls.
"""

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertron_loadtest.figures import (
    FIGURES,
    PROCESS_FIGURES,
    RAMP_PHASE,
    WHOLE_RUN,
    WHOLE_RUN_ONLY,
    Figures,
    figures_by_phase,
)
from bertron_loadtest.phases import SHAPES, WARM_UP
from bertron_loadtest.run_record import Run

SHAPES_OF_PHASES = {
    "steady": "steady",
    "soak": "soak",
    "before": "spike",
    "spike": "spike",
    "after": "spike",
}  # and those of a ramp: RAMP_PHASE


@dataclass(frozen=True)
class Limit:
    """What a figure may be; None where it is not limited.

    Attributes:
        max: At most.
        min: At least.
        max_times_baseline: At most so many times the baseline's figure.
        min_times_baseline: At least so many times.
    """

    max: float | None = None
    min: float | None = None
    max_times_baseline: float | None = None
    min_times_baseline: float | None = None


@dataclass(frozen=True)
class Thresholds:
    """Limits by phase and figure."""

    limits: Mapping[str, Mapping[str, Limit]]


@dataclass(frozen=True)
class Verdict:
    """What became of one limit.

    Attributes:
        phase: Its table.
        figure: Its name.
        limit: In words.
        found: The figure; None where it cannot be known.
        passed: Whether it was kept; true where it was not judged.
        judged: Whether it was.
        reason: Why it was not judged, or not kept although no figure is beyond it; else "".
    """

    phase: str
    figure: str
    limit: str
    found: float | None
    passed: bool
    judged: bool = True
    reason: str = ""


def read_thresholds(path: Path) -> Thresholds:
    """Read a file of limits.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no TOML, holds no limit, or a name or number in it means nothing.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
        limits = {phase: _read_table(phase, table) for phase, table in document.items()}
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not any(limits.values()):
        raise ValueError(f"{path}: there is no limit in it")
    return Thresholds(limits)


def judge(run: Run, thresholds: Thresholds, baseline: Run | None = None) -> list[Verdict]:
    """Compare a run with its limits; it passed if every verdict did.

    Not judged are tables for phases of another shape, and limits relative to a baseline where
    none is given. If then nothing is left, that is a verdict of its own, which fails; so is a run
    that could not be made.
    """
    found, base = figures_by_phase(run), figures_by_phase(baseline) if baseline else None
    verdicts = [
        _judge_limit(run, found, base, (phase, figure, key, bound))
        for phase, table in thresholds.limits.items()
        for figure, limit in table.items()
        for key, bound in vars(limit).items()
        if bound is not None
    ]
    if run.problem:
        verdicts.insert(
            0, Verdict(WHOLE_RUN, "problem", "none", None, passed=False, reason=run.problem)
        )
    if not any(verdict.judged for verdict in verdicts):
        reason = "no limit is for this run"
        verdicts.append(Verdict(WHOLE_RUN, "limits", "some", None, passed=False, reason=reason))
    return verdicts


def _read_table(phase: str, table: Any) -> dict[str, Limit]:
    phases = [WHOLE_RUN, *SHAPES_OF_PHASES]
    if phase not in phases and not RAMP_PHASE.fullmatch(phase):
        judged = f"{', '.join(phases)} and those of a ramp, as '64 users'"
        why = "is judged by nobody" if phase == WARM_UP else "is no phase"
        raise ValueError(f"{phase!r} {why}; phases are {judged}")
    if not isinstance(table, dict):
        raise ValueError(f"{phase!r} is no table: write [{phase}]")
    return {name: _read_limit(phase, name, limit) for name, limit in _flatten(table)}


def _flatten(table: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Figures of processes under one name, whether they were quoted or are tables in tables."""
    for name, value in table.items():
        if name in PROCESS_FIGURES and isinstance(value, dict):
            yield from ((f"{name}.{process}", limit) for process, limit in value.items())
        else:
            yield name, value


def _read_limit(phase: str, figure: str, limit: Any) -> Limit:
    what = f"{figure!r} of {phase!r}"
    stem, dot, process = figure.partition(".")
    if not (stem in PROCESS_FIGURES and process if dot else figure in FIGURES):
        names = [*FIGURES, *(f"{name}.PROCESS" for name in PROCESS_FIGURES)]
        raise ValueError(f"{what} is no figure; figures are {', '.join(names)}")
    if phase != WHOLE_RUN and figure in WHOLE_RUN_ONLY:
        raise ValueError(f"{what} is only known of {WHOLE_RUN!r}")
    keys = list(Limit.__dataclass_fields__)
    if not isinstance(limit, dict) or not limit:
        raise ValueError(f"{what} is {limit!r}; a limit as {{ max = 1 }} is wanted")
    for key, bound in limit.items():
        if key not in keys:
            raise ValueError(f"{what} has {key!r}; a limit has {', '.join(keys)}")
        if (
            isinstance(bound, bool)
            or not isinstance(bound, int | float)
            or not math.isfinite(bound)
        ):
            raise ValueError(f"{what} has {key} = {bound!r}; a finite number is wanted")
    return Limit(**{key: float(bound) for key, bound in limit.items()})


def _judge_limit(
    run: Run,
    found: Mapping[str, Figures],
    base: Mapping[str, Figures] | None,
    limit: tuple[str, str, str, float],
) -> Verdict:
    phase, figure, key, bound = limit
    is_relative = key.endswith("_times_baseline")
    words = f"at {'most' if key.startswith('max') else 'least'} {bound:.6g}"
    words += " times the baseline's" if is_relative else ""

    def verdict(passed: bool, reason: str = "", *, judged: bool = True) -> Verdict:
        value = found.get(phase, {}).get(figure)
        return Verdict(phase, figure, words, value, passed, judged, reason)

    if phase not in found:
        is_other, reason = _why_absent(run, phase)
        return verdict(is_other, reason, judged=not is_other)
    if is_relative and base is None:
        return verdict(True, "there is no baseline", judged=False)
    value = found[phase].get(figure)
    if not found[phase]["calls"]:
        return verdict(False, "no call ended in it")
    if value is None:
        return verdict(False, f"it cannot be known of this run{_processes(found, figure)}")
    if is_relative and base is not None:
        base_value = base.get(phase, {}).get(figure)
        if base_value is None:
            return verdict(False, "it cannot be known of the baseline")
        words += f" {base_value:.6g}"
        bound *= base_value
    return verdict(value <= bound if key.startswith("max") else value >= bound)


def _why_absent(run: Run, phase: str) -> tuple[bool, str]:
    """Whether a phase that the run has not is of another shape, and what to say of it."""
    shape, own = SHAPES_OF_PHASES.get(phase, "ramp"), _shape_of(run)
    if own is not None and shape != own:
        return True, f"this run's shape is {own}"
    names = ", ".join(phase.name for phase in run.phases) or "none"
    return False, f"the run has no such phase; it has {names}"


def _shape_of(run: Run) -> str | None:
    if run.settings.get("shape") in SHAPES:
        return str(run.settings["shape"])
    names = [phase.name for phase in run.phases if phase.name != WARM_UP]
    return SHAPES_OF_PHASES.get(names[0], "ramp") if names else None


def _processes(found: Mapping[str, Figures], figure: str) -> str:
    """Names that a figure of a process might have meant."""
    stem, dot, _ = figure.partition(".")
    if not dot:
        return ""
    names = [name for name in found[WHOLE_RUN] if name.startswith(f"{stem}.")]
    return f"; of it are known {', '.join(names) or 'none'}"
