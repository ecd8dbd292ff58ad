"""The house rules that a parser can check: who sees the whole settings, sizes, retired words, README's map."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "asr_lora"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION = 400, 60
# Stages and their packages, config and runs; what puts a training run together; what predicts a whole run.
TAKES_CONFIG = re.compile(
    r"(prepare|train|soup|self_train|eval|report|plan|baseline|transcribe|label|correct|record)\.py"
    r"|(search|demo|doctor|export|app|config|runs)/\w+\.py|training/(builder|fit|rates)\.py|planning/(devices|estimate)\.py"
)
RETIRED = {
    "doubt", "doubts", "dial", "ears", "fault", "faults", "glimpse", "heard", "hear", "hearing", "hears", "learnt",
    "lesson", "listened", "listener", "sieve", "told", "twins", "untouched", "worn",
}  # fmt: skip
IN_PROSE = re.compile(
    r"(?<!transcribe\.)\b(heard|hears|untouched|worn|nobody (?:can|here|has)|somebody)\b", re.IGNORECASE
)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]


def identifiers(tree: ast.Module) -> set[str]:
    """All names that a module binds or uses, attributes too."""
    found: set[str] = set()
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(name := getattr(node, field, None), str):
                found.add(name)
    return found


def words(name: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_a_module_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree, name = ast.parse(text), relative(path)
    assert text.count("\n") <= MOST_LINES, f"{name}: does it hold two subjects?"
    long = [each.name for each in functions(tree) if (each.end_lineno or 0) - each.lineno >= MOST_FUNCTION]
    assert not long, f"{name}: more than {MOST_FUNCTION} lines: {long}"
    whole = [
        each.name
        for each in functions(tree)
        if any(
            "Config" in re.findall(r"\w+", ast.unparse(arg.annotation)) for arg in parameters(each) if arg.annotation
        )
    ]
    assert not whole or TAKES_CONFIG.fullmatch(name), f"{name}: {whole} take all settings; hand them a branch"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_identifiers_are_free_of_retired_words(path: Path) -> None:
    found = {name for name in identifiers(ast.parse(path.read_text(encoding="utf-8"))) if words(name) & RETIRED}
    assert not found


def prose() -> list[Path]:
    texts = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *MODULES,
        *PACKAGE.rglob("*.html"),
        *PACKAGE.rglob("*.md"),
        *(ROOT / "conf").rglob("*.yaml"),
    ]
    return sorted(texts)


@pytest.mark.parametrize("path", prose(), ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_speaks_of_decoding_and_of_the_base_model(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [f"{number}: {match[0]}" for number, line in enumerate(lines, 1) if (match := IN_PROSE.search(line))]
    assert not found


def test_the_map_of_readme_is_what_the_packages_say_of_themselves() -> None:
    shown = dict(
        re.findall(r"^\| `asr_lora/(\w+)/` \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M)
    )
    packages = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    own = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in packages.items()}
    assert shown == {name: (text or "").removesuffix(".") for name, text in own.items()}


def test_the_package_holds_its_folders_and_stages_and_nothing_else() -> None:
    entries = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    named = "prepare train soup self_train eval report plan baseline transcribe label correct record"
    stages = {f"{name}.py" for name in named.split()}
    assert entries == folders | stages | {"__init__.py", "__main__.py", "cli.py"} and len(entries) == 36
