"""Tables and lines on standard output that fit the terminal: no figure, interval or name is broken over two lines."""

import os
import re
import unicodedata
from collections.abc import Collection, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

PIECE = re.compile(r"\S*\d\S* to \S*\d\S*|\S+")  # an interval is one piece
GAP = 2  # columns between two cells


def screen() -> Console:
    """Returns the console of standard output: styles on a terminal alone, and none where NO_COLOR is set."""
    return Console(highlight=False, color_system=None if os.environ.get("NO_COLOR") else "auto")


def show(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = (),
    left: Collection[str] = (), cut: bool = False,
) -> None:  # fmt: skip
    """Prints a title, a row a line under the headings, and notes.

    The first column and those of `left` are aligned left, figures right. With `cut` the last column is shortened to
    what the terminal has left. Rows that are still too wide are printed as `first cell: heading cell; heading cell`.
    """
    console = screen()
    show_line(title, "bold")
    table = [[plain(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    if cut:
        widths[-1] = min(widths[-1], max(8, console.width - sum(widths[:-1]) - GAP * len(widths[:-1])))
    if sum(widths) + GAP * (len(widths) - 1) > console.width:
        for first, *others in table[1:]:
            about = [f"{name} {cell}".strip() for name, cell in zip(table[0][1:], others, strict=True) if cell]
            show_pieces([f"{first}:" if first else " ", *(f"{each};" for each in about[:-1]), *about[-1:]])
    else:
        is_left = [at == 0 or heading in left for at, heading in enumerate(headings)]
        for number, row in enumerate(table):
            cells = [_fitted(*each) for each in zip(row, widths, is_left, strict=True)]
            print_line(console, Text((" " * GAP).join(cells).rstrip(), "" if number else "bold"))
    for note in filter(None, notes):
        show_line(note)


def show_line(line: str, style: str = "") -> None:
    """Prints a line, folded between words where it is wider than the terminal."""
    show_pieces(PIECE.findall(plain(line)), style)


def show_pieces(pieces: Sequence[str], style: str = "") -> None:
    """Prints pieces of text, of which none is broken; one that is wider than a terminal is folded at its words."""
    console = screen()
    for line in folded(pieces, console.width):
        print_line(console, Text(line, style))


def folded(pieces: Sequence[str], width: int) -> list[str]:
    """Returns lines of at most `width` columns, those after the first indented; a longer word has its own line."""
    lines = [""]
    whole = [part for each in pieces for part in ([each] if cell_len(each) <= width - GAP else PIECE.findall(each))]
    for piece in whole:
        joined = f"{lines[-1]} {piece}" if lines[-1].strip() else f"{lines[-1]}{piece}"
        if cell_len(joined) <= width or not lines[-1].strip():
            lines[-1] = joined
        else:
            lines.append(" " * GAP + piece)
    return lines


def _fitted(cell: str, width: int, is_left: bool) -> str:
    if cell_len(cell) > width:
        return set_cell_size(cell, width - 1) + "…"
    return cell + " " * (width - cell_len(cell)) if is_left else " " * (width - cell_len(cell)) + cell


def plain(text: str) -> str:
    """Returns text in one line without control characters, which could move the cursor."""
    return "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)


def print_line(console: Console, line: Text) -> None:
    """Prints a line as it is."""
    console.print(line, soft_wrap=True)  # a word that is wider than the terminal stays whole, to be copied
