"""A Hub over loopback: data sets in folders, served as huggingface_hub and datasets ask for them."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import datasets
import pyarrow as pa
import pyarrow.parquet
from support.releases import tone, write_lines

SHA = "0" * 40


class Hub(BaseHTTPRequestHandler):
    """Serves `home/<owner>/<name>/`; the revision refs/convert/parquet is in `home/<owner>/<name>@parquet/`."""

    def __init__(self, home: Path, asked: list[str], *rest: Any) -> None:
        self.home, self.asked = home, asked
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.asked.append(urlsplit(self.path).path)
        parts = self.parts()
        if parts[:2] == ["api", "datasets"]:
            name, kind, rest = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "", parts[5:]
            folder = self.folder(name, rest[0] if rest else SHA)
            if not folder.is_dir():
                self.answer(404, {"error": "not found"}, **{"X-Error-Code": "RepoNotFound"})
            elif kind == "tree":
                self.answer(200, [self.entry(folder, file) for file in sorted(folder.rglob("*"))
                                  if file.relative_to(folder).is_relative_to("/".join(rest[1:]) or ".")])  # fmt: skip
            else:
                sha = folder.name.rpartition("@")[2] if "@" in folder.name else SHA
                files = [{"rfilename": str(file.relative_to(folder))} for file in folder.rglob("*") if file.is_file()]
                self.answer(200, {"_id": "0", "id": name, "sha": {"parquet": "1" * 40}.get(sha, SHA), "private": False,
                                  "gated": False, "disabled": False, "siblings": files, "tags": [], "downloads": 0,
                                  "likes": 0})  # fmt: skip
        elif parts[0] == "datasets" and "resolve" in parts:
            at = parts.index("resolve")
            self.send_file(self.folder("/".join(parts[1:at]), parts[at + 1]) / "/".join(parts[at + 2 :]))
        else:
            self.answer(404, {"error": "not found"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        parts = self.parts()
        if parts[4:5] != ["paths-info"]:
            self.answer(404, {"error": "not found"})
            return
        folder = self.folder("/".join(parts[2:4]), parts[5])
        files = [folder / path for path in asked["paths"]]
        self.answer(200, [self.entry(folder, file) for file in files if file.exists()])

    def parts(self) -> list[str]:
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def folder(self, name: str, revision: str) -> Path:
        return self.home / (f"{name}@parquet" if revision in ("refs/convert/parquet", "1" * 40) else name)

    def entry(self, folder: Path, file: Path) -> dict[str, Any]:
        of = {"path": str(file.relative_to(folder)), "oid": hashlib.sha1(str(file).encode()).hexdigest()}
        return {**of, "type": "file", "size": file.stat().st_size} if file.is_file() else {**of, "type": "directory"}

    def send_file(self, file: Path) -> None:
        if not file.is_file():
            self.answer(404, {"error": "not found"}, **{"X-Error-Code": "EntryNotFound"})
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", SHA)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def answer(self, status: int, body: Any, **headers: str) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Logs nothing."""


@contextmanager
def served(home: Path) -> Iterator[tuple[str, list[str]]]:
    """Serves the data sets in a folder: yields the address, and the paths that were asked for so far."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, home, asked))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def write_dataset(
    folder: Path, config: str, splits: Mapping[str, Sequence[Mapping[str, Any]]], features: Mapping[str, Any]
) -> None:
    """Writes a configuration as push_to_hub does: `<config>/<split>-00000-of-00001.parquet`.

    A row has `audio`, the name of a recording, and columns of these features. Call `write_card` at the end.
    """
    (folder / config).mkdir(parents=True, exist_ok=True)
    typed = datasets.Features({"audio": datasets.Audio(), **features})
    for split, rows in splits.items():
        sound = [{"bytes": tone(row["audio"], 0.3), "path": row["audio"]} for row in rows]
        columns = {"audio": pa.array(sound, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
        columns |= {name: pa.array([row[name] for row in rows], typed[name].pa_type) for name in features}
        table = pa.table(columns).replace_schema_metadata(typed.arrow_schema.metadata)
        pyarrow.parquet.write_table(table, folder / config / f"{split}-00000-of-00001.parquet")


def write_card(folder: Path) -> None:
    """Writes the README with the configurations that the folder holds."""
    lines = ["---", "configs:"]
    for config in sorted(each.name for each in folder.iterdir() if each.is_dir()):
        lines += [f"- config_name: {config}", "  data_files:"]
        for file in sorted((folder / config).iterdir()):
            split = file.name.partition("-")[0]
            lines += [f"  - split: {split}", f"    path: {config}/{split}-*"]
    write_lines(folder / "README.md", [*lines, "---"])
