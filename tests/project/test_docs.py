"""README and docs/: every link leads somewhere, every command composes, every target and key is named."""

import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from support.makefile import ROOT, make

from asr_lora.cli import STAGES
from asr_lora.config.compose import load

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
RESULTS, ACCURACY = ROOT / "recipes" / "RESULTS.md", ROOT / "recipes" / "ACCURACY.md"
SNAPSHOTS = Path(__file__).parent / "snapshots"
BLOCK = re.compile(r"^```.*?^```", re.S | re.M)
INDENTED = re.compile(r"^    \$ ((?:.*\\\n)*.*)", re.M)
ENDS = {"|", ">", "&&", "...", "#"}  # words after which no override of a command follows


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(path: Path) -> str:
    return BLOCK.sub("", path.read_text(encoding="utf-8"))


@cache
def anchors(path: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.M)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title).lower() for title in titles)
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in plain}


def commands(path: Path) -> Iterator[list[str]]:
    """Yields the words of every command line of make and of a stage: of blocks, of tables and of sentences."""
    text = path.read_text(encoding="utf-8")
    shown = [line for block in BLOCK.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    shown += [line.replace("\\\n", " ") for line in INDENTED.findall(text)]
    inline = (re.sub(r"\s+", " ", span) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(path)))
    shown += [span for span in inline if re.match(r"(make|asr-lora|python -m asr_lora|torchrun|accelerate) ?", span)]
    for line in shown:
        if re.match(r"make( |$)", line) or "-m asr_lora." in line or re.match(r"asr-lora [a-z]", line):
            yield shlex.split(line, comments=True)


def overrides(words: list[str]) -> list[str]:
    """Returns the overrides of a stage's command line, of a sweep the first value of each."""
    at = next(number for number, word in enumerate(words) if re.match(r"asr[-_]lora($|\.)", word))
    at += "." not in words[at]
    assert words[at].removeprefix("asr_lora.") in STAGES
    own = [word for word in takewhile(lambda word: word not in ENDS, words[at + 1 :]) if "=" in word]
    parsed = {word: OverridesParser.create().parse_override(word) for word in own}
    return [
        word.partition(",")[0] if each.is_sweep_override() else word
        for word, each in parsed.items()
        if not each.key_or_group.startswith("hydra")  # launchers are of extras: tests/runs/test_launchers.py
    ]


@pytest.mark.parametrize("path", [*PAGES, RESULTS, ACCURACY], ids=name)
def test_every_relative_link_leads_to_a_file_and_a_heading(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        file = (path.parent / place).resolve() if place else path
        assert file.exists(), link
        assert not anchor or anchor in anchors(file), link


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_command_line_composes(path: Path) -> None:
    """As `--cfg job` composes it; what make would run by `make -n`."""
    for words in commands(path):
        lines = [words]
        if words[0] == "make":
            printed = make("-n", *words[1:]).replace("\\\n", " ").splitlines() if len(words) > 1 else []
            lines = [shlex.split(line) for line in printed if "-m asr_lora " in line]
        for line in lines:
            load(overrides(line))


def test_every_make_target_is_named() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert len(targets) > 15
    assert [target for target in targets if not re.search(rf"\bmake {target}\b(?!-)", text)] == []


def test_the_readme_is_short_and_lines_are_no_wider_than_the_codes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 180
    written = [page for page in PAGES if page.name != "settings.md"]
    lines = [(name(page), line) for page in written for line in page.read_text(encoding="utf-8").splitlines()]
    assert [found for found in lines if len(found[1]) > 120 and not found[1].startswith("|")] == []


def test_the_readmes_snippet_is_one_that_runs() -> None:
    """tests/stages/test_export_real.py runs those of docs/export.md."""
    snippets = re.findall(r"```python\n.*?```", README.read_text(encoding="utf-8"), re.S)
    assert len(snippets) == 1 and snippets[0] in (ROOT / "docs" / "export.md").read_text(encoding="utf-8")


def test_the_page_of_settings_is_that_of_conf() -> None:
    page = runpy.run_path(str(ROOT / "recipes" / "settings_page.py"))["page"]()
    assert (ROOT / "docs" / "settings.md").read_text(encoding="utf-8") == page, "run python recipes/settings_page.py"
    default = [line.split(":")[0].strip() for line in (SNAPSHOTS / "settings.yaml").read_text().splitlines()]
    assert {key for key in default if key and "-" not in key} <= set(re.findall(r"\w+", page))


def test_every_file_and_key_of_a_run_is_explained() -> None:
    page = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    keys = {line.split(": ")[1] for line in (SNAPSHOTS / "keys.txt").read_text(encoding="utf-8").splitlines()}
    leaves = {key.rpartition("/")[2] for key in keys if not key.startswith(("versions/", "settings/"))}
    assert [key for key in sorted(leaves) if f"`{key}`" not in page] == []
    files = {Path(line).name for line in (SNAPSHOTS / "files.txt").read_text(encoding="utf-8").splitlines()}
    kept = {file for file in files if "tfevents" not in file and not file.endswith(".jsonl")}
    assert [file for file in sorted(kept) if file not in page] == []
