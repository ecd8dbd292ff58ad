"""The files of conf/ as text: each setting's value and comment, without Hydra.

compose.py composes them.
"""

import re
from pathlib import Path

LINE = re.compile(r"( *)(?:- override /)?([\w.]+):(?: +([^#]*?))?(?: *# ?(.*))?")
ITEM, NOTE, DEFAULT = re.compile(r" *- ([^:]+)"), re.compile(r"( *)# ?(.*)"), re.compile(r"  - (\w+): (\w+)")
Rows = dict[str, tuple[str, str]]


def conf_dir() -> Path:
    """Returns the checkout's conf/ when it is beside the package, else the copy in the wheel.

    An editable install leaves a stale copy in site-packages, which is therefore never preferred. Another folder that
    happens to be called conf does not count.
    """
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() and (checkout / "lora").is_dir() else package / "conf"


def default_choices() -> dict[str, str]:
    """Returns the default choice of every group: `{"data": "common_voice", ..., "experiment": "null"}`."""
    return dict(DEFAULT.findall((conf_dir() / "config.yaml").read_text(encoding="utf-8")))


def choices(group: str) -> list[str]:
    """Returns the names that a group can be set to, sorted."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def read(file: Path, prefix: str) -> tuple[str, Rows]:
    """Returns the comment at the top of a file of conf/, and its settings: value and comment by full name."""
    top, rows, parents, before = list[str](), Rows(), [(-1, prefix)], list[str]()
    for line in file.read_text(encoding="utf-8").splitlines():
        indent = len(line) - len(line.lstrip())
        if note := NOTE.fullmatch(line):
            if rows and indent > parents[-1][0]:  # goes on with the comment of the line above
                value, text = rows[parents[-1][1]]
                rows[parents[-1][1]] = value, f"{text} {note[2]}"
            elif note[2] == "@package _global_":
                parents = [(-1, "")]
            else:
                (before if rows else top).append(note[2])
        elif item := ITEM.fullmatch(line):
            value, text = rows[parents[-1][1]]
            rows[parents[-1][1]] = f"{value} {item[1]}".strip(), text
        elif setting := LINE.fullmatch(line):
            parents = [each for each in parents if each[0] < indent]
            name = ".".join(filter(None, (parents[-1][1], setting[2]))).removeprefix("defaults.")
            parents.append((indent, name))
            rows[name] = setting[3] or "", " ".join([*before, setting[4] or ""]).strip()
            before = []
    return " ".join(top), {name: row for name, row in rows.items() if any(row)}


def settings(experiment: str | None = None) -> Rows:
    """Returns value and comment of every setting under the default choices, or under those of an experiment.

    Groups are settings too: the value is the choice, the comment names the others.
    """
    chosen, own = default_choices(), Rows()
    del chosen["experiment"]
    if experiment:
        own = read(conf_dir() / "experiment" / f"{experiment}.yaml", "")[1]
        chosen |= {group: own[group][0] for group in chosen if group in own}
    rows = read(conf_dir() / "config.yaml", "")[1]
    for group, choice in chosen.items():
        others = ", ".join(each for each in choices(group) if each != choice)
        rows[group] = choice, f"or {others}" if others else ""
        rows |= read(conf_dir() / group / f"{choice}.yaml", group)[1]
    for name, (value, note) in own.items():
        if name not in chosen:
            rows[name] = value, note or rows.get(name, ("", ""))[1]
    return {name: (_resolved(value, rows), note) for name, (value, note) in rows.items()}


def _resolved(value: str, rows: Rows) -> str:
    """Returns the value of the setting that `value` refers to, `${model.learning_rate}`; else `value`."""
    other = value.removeprefix("${").removesuffix("}")
    return rows[other][0] if value == f"${{{other}}}" and other in rows else value
