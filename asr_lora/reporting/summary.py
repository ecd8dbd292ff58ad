"""The end of a run in at most 12 lines: both error rates, three sentences, the page, the next command."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from asr_lora.evaluation import error_analysis
from asr_lora.reporting.tables import change, leading_first, strength_cell
from asr_lora.runs import folder as run
from asr_lora.runtime.screen import PIECE, folded, plain, print_line, screen

LINES = 12
LEGEND = "[x] is wrong or added, [-] left out"
WRONG = "red"  # beside the brackets, which need no colour


def show_summary(folder: Path, page: Path, following: str) -> None:
    """Prints the summary of a scored run; `following` is the command to type next.

    The sentences are the most improved and the most degraded clip by their change in errors, and of the others the one
    nearest to the median whose lines fit.
    """
    console, facts = screen(), run.read_scores(folder)
    split, own = next(iter(facts.items()))
    rate, language = leading_first(own["language"])[0].upper(), own["language"]
    base, tuned = (strength_cell({**figures, "language": language}) for figures in (own["baseline"], own))
    above = [f"{rate} base {base}, fine-tuned {tuned}", f"difference {change(own)}; {LEGEND}"]
    opened = f"page (open in a browser): {page}"
    below = [opened if cell_len(opened) <= console.width else f"page: {page}", f"next: {following}"]
    first, last = ([each for line in lines for each in folded(PIECE.findall(line), console.width)] for lines in (
        above, below
    ))  # fmt: skip
    examples = _examples(run.read_hypotheses(folder, split), language, console.width, LINES - len(first) - len(last))
    for line in [*map(Text, first), *examples, *map(Text, last)]:
        print_line(console, line)


def chosen(lines: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Returns label and place of the most improved clip, of the most degraded one, and of all between.

    Those are in the order of their distance to the median change.
    """
    change = [line["errors"] - line["baseline_errors"] for line in lines]
    first, *between = sorted(range(len(lines)), key=lambda at: change[at])
    found = [("most improved" if change[first] < 0 else "least degraded", first)]
    if between:
        last = between.pop()
        found.append(("most degraded" if change[last] > 0 else "least improved", last))
    middle = sorted(range(len(between)), key=lambda place: abs(place - len(between) // 2))
    return found + [("median change", between[place]) for place in middle]


def aligned(line: Mapping[str, Any], language: str) -> tuple[str, list[list[error_analysis.AlignmentChunk]]]:
    """Returns the normalized reference, and its alignments with the base and the fine-tuned model's hypothesis."""
    texts = {name: plain(line[name]) for name in error_analysis.NORMALIZED}
    return error_analysis.align_line(texts, language)


def counted(label: str, line: Mapping[str, Any]) -> str:
    """Returns a clip's label with the errors of both models."""
    return f"{label}, {line['baseline_errors']} to {line['errors']} errors"


def _examples(lines: Sequence[Mapping[str, Any]], language: str, width: int, most: int) -> list[Text]:
    """Returns the lines of three clips; `most` is how many there may be."""
    places = chosen(lines)
    found = [text for label, at in places[:2] for text in _example(label, lines[at], language, width)]
    medians = (_example(label, lines[at], language, width) for label, at in places[2:])
    return [*found, *next((example for example in medians if len(found) + len(example) <= most), [])]


def _example(label: str, line: Mapping[str, Any], language: str, width: int) -> list[Text]:
    """Returns the reference and the hypotheses that have errors, marked: one without is the reference."""
    reference, both = aligned(line, language)
    shown = dict(zip(("base", "fine-tuned"), both, strict=True))
    if both[0] == both[1]:
        shown = {"both": both[0]}
    wrong = {name: marked(chunks) for name, chunks in shown.items() if error_analysis.count_edits(chunks)}
    sentences = {counted(label, line): [(word, False) for word in reference.split()]}
    sentences |= {f"  {name}": words for name, words in wrong.items()}
    # Words at the beginning that all have right are left out where a line would be too long.
    same = min((next((at for at, (_, bad) in enumerate(words) if bad), 0) for words in wrong.values()), default=0)
    if any(cell_len(f"{name}: {_joined(words)}") > width for name, words in sentences.items()):
        sentences = {name: [("…", False), *words[same:]] if same else words for name, words in sentences.items()}
    return [_cut(name, words, width) for name, words in sentences.items()]


def marked(chunks: Sequence[error_analysis.AlignmentChunk]) -> list[tuple[str, bool]]:
    """Returns the words of a hypothesis, neighbouring errors in one bracket, and whether each is an error."""
    words: list[tuple[str, bool]] = []
    for chunk in chunks:
        if chunk.kind == "equal":
            words += [(word, False) for word in chunk.hypothesis]
        else:
            left_out = "[-]" if len(chunk.reference) == 1 else f"[-{len(chunk.reference)} words]"
            words.append((f"[{' '.join(chunk.hypothesis)}]" if chunk.hypothesis else left_out, True))
    return words


def _joined(words: Sequence[tuple[str, bool]]) -> str:
    return " ".join(word for word, _ in words)


def _cut(name: str, words: Sequence[tuple[str, bool]], width: int) -> Text:
    line = Text(f"{name}:")
    for word, bad in words:
        line.append(" ")
        line.append(word, WRONG if bad else None)
    if cell_len(line.plain) > width:
        line.right_crop(len(line.plain) - len(set_cell_size(line.plain, width - 1).rstrip()))
        line.append("…")
    return line
