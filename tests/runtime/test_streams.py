"""Standard output and error of consoles and pipes that are not UTF-8: text is shown or escaped, data is right."""

import json
import os
import pty
import subprocess
import sys

import pytest

TEXT = "Fātima 😀 «é»"
ASCII = "F\\u0101tima \\ud83d\\ude00 \\u00ab\\u00e9\\u00bb"
ALL = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}  # else Python takes UTF-8 where LC_ALL is C
PRINTING = """
import json, sys
from rich.console import Console
from rich.table import Table
from asr_lora.runtime.streams import set_up_streams
set_up_streams()
text = sys.argv[1].encode("ascii").decode("unicode_escape").encode("utf-16", "surrogatepass").decode("utf-16")
print(text)
table = Table("text")
table.add_row(text)
Console(width=60).print(table)
sys.stdout.write(json.dumps({"text": text}, ensure_ascii=False) + "\\n")
print(text, file=sys.stderr)
"""
LAUNCHED = """
from asr_lora.runs.launch import launch
from asr_lora.runtime.console import log, progress
def stage(config):
    with progress("transcribing F\\u0101tima", total=1) as bar:
        bar.advance()
    log("F\\u0101tima")
    print("F\\u0101tima")
launch(stage)
"""


def printed(**environment: str) -> subprocess.CompletedProcess[bytes]:
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    done = subprocess.run(
        [sys.executable, "-c", PRINTING, ASCII], env=usual | environment, capture_output=True, check=False
    )
    assert not done.returncode, done.stderr
    return done


@pytest.mark.parametrize("environment", [ALL, {"LC_ALL": "C.UTF-8"}, {**ALL, "PYTHONIOENCODING": "utf-8"}])
def test_a_pipe_is_written_in_utf_8_whatever_the_locale(environment: dict[str, str]) -> None:
    done = printed(**environment)
    first, *_, last = done.stdout.decode().splitlines()
    assert first == TEXT == json.loads(last)["text"] == done.stderr.decode().strip()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_named_encoding_is_kept_and_what_it_lacks_is_escaped_as_json_does(encoding: str) -> None:
    done = printed(PYTHONIOENCODING=encoding)
    first, *_, last = done.stdout.decode(encoding).splitlines()
    assert first == (ASCII if encoding == "ascii" else ASCII[:-18] + "«é»")
    assert json.loads(last)["text"] == TEXT


def test_a_named_handler_of_errors_is_kept() -> None:
    assert printed(PYTHONIOENCODING="ascii:replace").stdout.startswith(b"F?tima ? ???")


def test_a_console_keeps_its_encoding() -> None:
    leader, console = pty.openpty()
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))}
    command = [sys.executable, "-c", PRINTING, ASCII]
    done = subprocess.run(command, env=usual | ALL, stdout=console, stderr=subprocess.PIPE, check=False)
    os.close(console)
    assert not done.returncode, done.stderr
    assert os.read(leader, 200).decode("ascii").startswith(ASCII)
    os.close(leader)


def test_a_command_logs_and_prints_on_a_console_that_is_not_utf_8() -> None:
    environment = os.environ | ALL | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", LAUNCHED], env=environment, capture_output=True, check=False)
    assert not done.returncode, done.stderr
    assert done.stdout == b"F\\u0101tima\n"
    first, *_, last = done.stderr.splitlines()
    assert b"file names are read in ascii" in first and first.endswith(b"export PYTHONUTF8=1")
    assert last == b"F\\u0101tima"
