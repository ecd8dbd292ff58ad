"""Pages answer themselves alone: no page of another site, and no name of another machine."""

from collections.abc import Iterator

import httpx
import pytest
from support.pages import served_page

from asr_lora.app.serving import OwnPageOnly

LOCAL = ["localhost", "127.0.0.1", "::1"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page for this machine alone, as a user starts it."""
    folder = tmp_path_factory.mktemp("read")
    (folder / "sentences.txt").write_text("Dit is een zin.\n")
    words = [f"record.prompts={folder}/sentences.txt", f"record.out={folder}/mine", "data.language=nl"]
    with served_page("record", *words) as (found, *_):
        yield found.removeprefix("http://").removesuffix("/")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),  # no browser, or a link that was followed
        ({"Origin": "http://{}"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another program's page on this machine
        ({"Host": "evil.example:7860", "Origin": "http://evil.example:7860"}, 403),  # after DNS rebinding
    ],
)
@pytest.mark.parametrize("path", ["/", "/gradio_api/upload"])
def test_a_page_answers_itself_alone(address: str, headers: dict[str, str], status: int, path: str) -> None:
    sent = {name: value.format(address) for name, value in headers.items()}
    if path == "/":
        answer = httpx.get(f"http://{address}{path}", headers=sent)
    else:
        answer = httpx.post(f"http://{address}{path}", headers=sent, files={"files": ("x.bin", b"x")})
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("host", "origin", "hosts", "own"),
    [
        ("localhost:7860", "http://localhost:7860", LOCAL, True),
        ("[::1]:7860", "http://[::1]:7860", LOCAL, True),
        ("127.0.0.1.evil.example:7860", None, LOCAL, False),
        ("", None, LOCAL, False),
        ("server.example:7860", "http://server.example:7860", None, True),  # of all machines: names are not known here
        ("server.example:7860", "http://evil.example", None, False),
    ],
)
def test_origin_and_host_decide(host: str, origin: str | None, hosts: list[str] | None, own: bool) -> None:
    assert OwnPageOnly(None, hosts).is_own(host, origin) == own
