"""Which tokenizer.json is exported, and the proof that it reads texts as transformers does.

The server reads ``tokenizer.json`` alone. transformers builds its tokenizer anew from that file's
vocabulary and from ``tokenizer_config.json``, so the two may read a text differently.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertron_torchscript.checkpoint import Checkpoint
from bertron_torchscript.errors import ExportError, first_line, shortened
from bertron_torchscript.verification import TEXTS, load_tokenizer, tokenize

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# What normalizers, pre-tokenizers and special tokens may each treat in their own way.
HARD_TEXTS = (
    "ﬁne ½ Ａ①",  # ligature, fraction, full-width and circled characters
    "e\u0301 cafe\u0301 n\u0303",  # accents as characters of their own
    "a\x00b\x07c\u200bd\u202ee\ufffd",
    "  leading and trailing  ",
    "two  spaces,\ttab\nnewline\r\n",
    "ALL CAPITALS: ÀÉÎ ÖÜ ÇÑ",
    "don't; it's 3.14 (or so) -- e-mail_me@example.org",
    "a [SEP] b [MASK] c [PAD] d",
    "a </s> b <mask> c <pad> d",
)
MAX_ADDED_TOKENS = 200  # compared, each in a text of its own

# CamemBERT's class adds them to every vocabulary, as names for ids that nothing has.
UNUSED_TOKENS = frozenset({"<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"})

PAIR = ("Where is my parcel?", "It never arrived.")


def write_tokenizer(
    checkpoint: Checkpoint, target: Path, progress: Callable[[str], None]
) -> Checkpoint:
    """Write the ``tokenizer.json`` to export, chosen by ``checkpoint.tokenizer``.

    None: the directory's own, which must read texts as transformers does. "file": that file, not
    compared. "transformers": what transformers makes of the directory, which must read texts the
    same once it is saved.

    Args:
        checkpoint: Whose tokenizer.
        target: The file to write.
        progress: Told what is no reason to stop but good to know.

    Returns:
        ``checkpoint`` with ``target`` as its ``tokenizer_file``.

    Raises:
        ExportError: There is no tokenizer, it reads a text otherwise than transformers does, or it
            does not belong to the model.
    """
    exported = dataclasses.replace(checkpoint, tokenizer_file=target)
    if checkpoint.tokenizer == "transformers":
        made = _made_by_transformers(checkpoint)
        _save_backend(made, checkpoint, target)
    else:
        load_tokenizer(checkpoint.tokenizer_file)
        shutil.copyfile(checkpoint.tokenizer_file, target)
        made = None if checkpoint.tokenizer == "file" else _made_by_transformers(checkpoint)
    if made is not None:
        _check_truncation_side(checkpoint, made, progress)
        _compare(exported, made)
    tokenize(exported, TEXTS)  # it belongs to the model
    tokenizer = load_tokenizer(target)
    _check_lower_case(exported, tokenizer)
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= checkpoint.config.vocab_size:
        progress(
            f"the tokenizer's largest token is {largest}, the model's vocabulary has "
            f"{checkpoint.config.vocab_size}: the server refuses texts with tokens beyond it"
        )
    if made is not None and checkpoint.config.type_vocab_size > 1:
        _compare_pair(exported, tokenizer, made, progress)
    return exported


def _made_by_transformers(checkpoint: Checkpoint) -> Any:
    """The tokenizer that AutoTokenizer makes of the directory; no code of the checkpoint's runs."""
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # a long text is no warning: it is cut
    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # whatever a configuration can make of transformers
        way_out = (
            "; --tokenizer file serves tokenizer.json as it is, not compared"
            if checkpoint.tokenizer_file.is_file()
            else ""
        )
        raise ExportError(
            f"{checkpoint.directory}: transformers makes no tokenizer of it: "
            f"{first_line(error)}{way_out}"
        ) from error


def _save_backend(made: Any, checkpoint: Checkpoint, target: Path) -> None:
    backend = getattr(made, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"{checkpoint.directory}: {type(made).__name__} has no tokenizer.json: it is written "
            "in Python"
        )
    # not by its own save, which has another error for a full disk than everything else
    target.write_text(backend.to_str(pretty=True), encoding="utf-8")


def _check_truncation_side(
    checkpoint: Checkpoint, made: Any, progress: Callable[[str], None]
) -> None:
    """The side is the request's here; what a tokenizer file says of it is not read."""
    if made.truncation_side == "right":
        return
    told = (
        f"{checkpoint.directory / 'tokenizer_config.json'}: truncation_side is "
        f"{made.truncation_side}; the server cuts the right end of a long text unless the request "
        "says truncate left"
    )
    if checkpoint.tokenizer is None:
        raise ExportError(f"{told}; --tokenizer file or transformers exports it nevertheless")
    progress(told)
    made.truncation_side = "right"


def _compare(checkpoint: Checkpoint, made: Any) -> None:
    """The exported file against ``made``, id by id."""
    tokenizer = load_tokenizer(checkpoint.tokenizer_file)
    tokenizer.enable_truncation(checkpoint.max_tokens_per_text)
    texts = [*TEXTS, *HARD_TEXTS, *(f"a {token} b" for token in _added_tokens(tokenizer, made))]
    expected = _read(made, checkpoint, texts, checkpoint.max_tokens_per_text)["input_ids"]
    found = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    for text, ours, theirs in zip(texts, found, expected, strict=True):
        if ours != list(theirs):
            difference = _first_difference(ours, theirs, tokenizer, made)
            raise ExportError(_disagreement(checkpoint, text, difference))


def _read(made: Any, checkpoint: Checkpoint, texts: list[Any], limit: int | None = None) -> Any:
    """What transformers' tokenizer gives for ``texts`` or pairs, cut at ``limit`` tokens."""
    try:
        return made(texts, truncation=limit is not None, max_length=limit)
    except Exception as error:  # as where it is made
        raise ExportError(
            f"{checkpoint.directory}: transformers' tokenizer cannot read the texts of the "
            f"comparison: {first_line(error)}"
        ) from error


def _added_tokens(tokenizer: Tokenizer, made: Any) -> list[str]:
    """Those of either side, the ones that only one has first; they are cut out of a text whole."""
    ours = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    theirs = {token.content for token in made.added_tokens_decoder.values()}
    either = (ours | theirs) - UNUSED_TOKENS
    return sorted(either, key=lambda token: (token in ours and token in theirs, token))[
        :MAX_ADDED_TOKENS
    ]


def _first_difference(
    ours: Sequence[int], theirs: Sequence[int], tokenizer: Tokenizer, made: Any
) -> str:
    differs = (pair[0] != pair[1] for pair in itertools.zip_longest(ours, theirs))
    place = next(place for place, is_other in enumerate(differs) if is_other)

    def named(ids: Sequence[int], name: Callable[[int], str | None]) -> str:
        return f"{name(ids[place])!r} ({ids[place]})" if place < len(ids) else "nothing"

    return (
        f"token {place} is {named(ours, tokenizer.id_to_token)} in the one, "
        f"{named(theirs, made.convert_ids_to_tokens)} in the other"
    )


def _disagreement(checkpoint: Checkpoint, text: str, difference: str) -> str:
    directory = checkpoint.directory
    has_file = (directory / "tokenizer.json").is_file()
    if checkpoint.tokenizer == "transformers":
        way_out = (
            "--tokenizer file serves the directory's own tokenizer.json, not compared"
            if has_file
            else "remove what a tokenizer.json cannot say from tokenizer_config.json"
        )
        return (
            f"{directory}: what transformers makes of it reads {shortened(text)} otherwise once "
            f"it is saved as tokenizer.json: {difference} ({way_out})"
        )
    has_config = (directory / "tokenizer_config.json").is_file()
    beside = "tokenizer_config.json beside it" if has_config else "the directory"
    return (
        f"{directory}: tokenizer.json and what transformers makes of {beside} disagree on "
        f"{shortened(text)}: {difference} (--tokenizer file serves tokenizer.json as it is, "
        "--tokenizer transformers what AutoTokenizer makes of the directory)"
    )


def _check_lower_case(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """sentence-transformers would lower-case each text first; right where the tokenizer does so."""
    if checkpoint.lower_case_file is None:
        return
    for text in (*TEXTS, "ALL CAPITALS"):
        if tokenizer.encode(text).ids != tokenizer.encode(text.lower()).ids:
            raise ExportError(
                f"{checkpoint.lower_case_file}: do_lower_case is true, but the tokenizer keeps "
                f"capitals apart (in {shortened(text)}); remove the key, and let the client "
                "lower-case its texts, or let tokenizer.json do it"
            )


def _compare_pair(
    checkpoint: Checkpoint, tokenizer: Tokenizer, made: Any, progress: Callable[[str], None]
) -> None:
    ours = tokenizer.encode(*PAIR)
    theirs = _read(made, checkpoint, [PAIR])
    (ids,) = theirs["input_ids"]
    # Where transformers gives no types its model takes 0.
    (types,) = theirs.get("token_type_ids") or [[0] * len(ids)]
    if ours.ids != ids:
        progress("pairs: transformers puts other special tokens into a pair than the server does")
    elif ours.type_ids != types:
        given = " and ".join(map(str, sorted(set(ours.type_ids))))
        other = "others" if "token_type_ids" in theirs else "none"
        progress(
            f"pairs: the server gives their tokens the types {given}, transformers gives {other}, "
            "so their vectors differ"
        )
