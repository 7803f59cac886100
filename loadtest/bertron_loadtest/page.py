"""Tables and pictures as text for a terminal, and as one HTML file that needs no other."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

_TEMPLATES = Path(__file__).parent
_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Table:
    """Cells under headings.

    Attributes:
        headings: One a column.
        rows: As many cells each.
        left: Columns whose cells begin at the left, beside the first; numbers end at the right.
        marked: Rows that must not be overlooked.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()

    def is_left(self, column: int) -> bool:
        """Return whether a column's cells begin at the left."""
        return column == 0 or column in self.left

    def text(self) -> str:
        """Return lines of aligned columns."""
        lines = [[printable(cell) for cell in line] for line in (self.headings, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if self.is_left(column) else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


@dataclass(frozen=True)
class Section:
    """A part of a page; it is left out where it holds nothing.

    Attributes:
        heading: Of it.
        notes: Paragraphs.
        pictures: ``<svg>`` elements, which are trusted.
        tables: Below.
        folded: Whether a reader has to open it.
    """

    heading: str
    notes: Sequence[str] = ()
    pictures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """A whole document.

    Attributes:
        title: Of it.
        notes: Paragraphs below the title.
        passed: Whether all is well; None where that is not the question.
        sections: In order.
    """

    title: str
    notes: Sequence[str]
    passed: bool | None
    sections: Sequence[Section]

    def write(self, path: Path) -> None:
        """Write it as HTML; what is no picture is escaped."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_TEMPLATES),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        environment.filters["printable"] = printable
        text = environment.get_template(_TEMPLATE).render(page=self)
        path.write_text(text + "\n", encoding="utf-8")


def shown(value: float | None) -> str:
    """Return three digits of a figure, a count whole, - for what is not known."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    for least, digits in ((100, 0), (10, 1), (1, 2)):
        if abs(value) >= least:
            return f"{value:,.{digits}f}"
    return f"{round(value, 4) + 0.0:.3g}"  # a slope of 1e-14 is none, and -0 is 0


def shown_share(value: float | None) -> str:
    """Return a share in percent."""
    return "-" if value is None else f"{100 * value:.1f} %"


def printable(text: str) -> str:
    """Return a text without what a terminal would obey or a file cannot hold."""
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )
