"""What others will see of this machine: commands and paths with local paths by their last part, and no more."""

import re
import shlex
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit, urlunsplit

from asr_lora.model.pretrained import is_hub_id

# A value in Hydra's grammar, cut into what stands in quotes, what is between the marks of lists and dictionaries (an
# interpolation is no such mark), and those marks.
PIECE = re.compile(r""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|(?:\$\{[^}]*\}|\\.|[^,{}\[\]"'])+|.""", re.DOTALL)
NAMED = re.compile(r"(\s*(?:[\w.+-]+:\s*)*)(.*?)(\s*)", re.DOTALL)  # `path: ` and `shards:` before what they are of
ELSEWHERE = ("hf:", "mdc:")  # what is behind them is a name on a server
NOT_PATHS = ("export.push", "data.columns")  # settings whose slashes mean something else


def shared_command(command: str) -> str:
    """A command as it is typed, its settings as `shared_value` has them."""
    try:
        words = shlex.split(command)
    except ValueError:  # a quote that does not end: of a run from elsewhere
        words = command.split()
    return shlex.join(map(_word, words))


def _word(word: str) -> str:
    key, equals, value = word.partition("=")
    if not equals:
        return word if word.startswith("~") else _place(word)  # ~key takes a setting out
    return f"{key}={shared_value(key.lstrip('+'), value)}"


def shared_value(key: str, value: str) -> str:
    """The value of a setting with every local path in it cut to its last part; a Hub id stays, and so does a URL.

    A URL loses what may be secret in it, a password and the query.
    """
    if key in NOT_PATHS or (key == "model.checkpoint" and is_hub_id(value.strip("\"'"))):
        return value
    return "".join(map(_piece, PIECE.findall(value)))


def _piece(piece: str) -> str:
    if piece[0] in "\"'" and len(piece) > 1:
        return f"{piece[0]}{_piece(piece[1:-1])}{piece[-1]}" if piece[1:-1] else piece
    found = NAMED.fullmatch(piece)
    if found is None:
        return piece
    before, rest, after = found.groups()
    if before.endswith(ELSEWHERE):
        return piece
    if rest.startswith("//"):
        scheme = re.split(r":\s*", before)[-2]
        return f"{before.removesuffix(f'{scheme}:')}{_url(f'{scheme}:{rest}')}{after}"
    return f"{before}{_place(rest)}{after}"


def _url(address: str) -> str:
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def _place(path: str) -> str:
    if path.startswith("~") and "/" not in path:  # another user's home would name that user
        return "~"
    if "/" not in path:
        return path
    home = path.rstrip("/") in ("", str(Path.home()))
    return "~" if home and path.strip("/") else PurePosixPath(path).name or path
