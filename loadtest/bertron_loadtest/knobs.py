"""The numbers of the server's configuration that tuning tries, and how they are written.

A configuration is edited as text: its comments are the reader's, and a value's says where it was
measured.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Knob:
    """One number of one step's ``config.pbtxt``.

    Attributes:
        name: As it stands in the file, where it has a name there.
        step: ``bert`` or ``tokenizer``.
        pattern: Where it stands in the file; the group is the number.
        what: In words, for the comment.
    """

    name: str
    step: str
    pattern: str
    what: str


@dataclass(frozen=True)
class Trials:
    """Numbers that are tried together, as what is best for one depends on the other."""

    name: str
    knobs: Sequence[Knob]
    values: Sequence[tuple[int, ...]]


def _parameter(name: str, what: str) -> Knob:
    return Knob(name, "bert", rf'key: "{name}" value {{ string_value: "(\d+)" }}', what)


ENCODERS = Knob(
    "count", "bert", r"instance_group \[ \{ count: (\d+)", "encoders side by side on a device"
)
_THREADS = _parameter("intra_op_threads", "CPU threads of a forward; 0: as many as it may use")
_TOKENS = _parameter(
    "max_tokens_per_forward", "packed tokens in one forward; 0: what suits the device"
)
_TEXTS = Knob(
    "max_batch_size",
    "bert",
    r"^max_batch_size: (\d+)",
    "texts joined in one batch, no fewer than a request may have",
)
_DELAY = Knob(
    "max_queue_delay_microseconds",
    "bert",
    r"^dynamic_batching \{(?: max_queue_delay_microseconds: (\d+))? \}",
    "wait for company",
)
TOKENIZERS = Knob(
    "count",
    "tokenizer",
    r"instance_group \[ \{ kind: KIND_CPU count: (\d+)",
    "tokenizers side by side",
)
# Side by side; an encoder on two cores needs no second one, one on a GPU may need many.
_TOKENIZER_COUNTS = sorted({1, 2, CORES // 4, CORES // 2} - {0})
# Instances x threads; no two of them the same thing on this machine.
_SPLITS = {(1, 0), (1, 1), (2, 0), (2, 1), (CORES, 1)}
_SPLITS |= {(CORES // 2, 2)} if CORES > 2 else set()

SEARCH = (
    Trials("instances and threads", (ENCODERS, _THREADS), sorted(_SPLITS)),
    Trials("tokens a forward", (_TOKENS,), ((0,), (128,), (512,), (1024,))),
    Trials("texts a batch", (_TEXTS,), ((64,), (128,), (256,))),
    Trials("queue delay", (_DELAY,), ((0,), (500,), (2000,))),
    Trials("tokenizers", (TOKENIZERS,), tuple((count,) for count in _TOKENIZER_COUNTS)),
)


def read_value(config: str, knob: Knob) -> int:
    """Return the value that a configuration has.

    Raises:
        ValueError: It is not found there.
    """
    match = re.search(knob.pattern, config, re.MULTILINE)
    if match is None:
        raise ValueError(f"config.pbtxt of {knob.step} has no {knob.name} where it is looked for")
    return int(match.group(1) or 0)


def with_value(config: str, knob: Knob, value: int, comment: str = "") -> str:
    """Return the configuration with another value, and a comment at its line's end.

    Raises:
        ValueError: The value's place is not found.
    """
    read_value(config, knob)
    lines = config.splitlines()
    for number, line in enumerate(lines):
        match = re.search(knob.pattern, line)
        if match is None:
            continue
        if match.group(1) is None:
            line = f"dynamic_batching {{ {knob.name}: {value} }}" + line[match.end() :]
        else:
            line = line[: match.start(1)] + str(value) + line[match.end(1) :]
        if comment:
            line = f"{line.partition('  #')[0]}  # {comment}"
        lines[number] = line
        break
    return "\n".join(lines) + "\n"
