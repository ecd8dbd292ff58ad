"""Cards, exports, pages and uploads to the Hub name no local folder."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from support.releases import RELEASE, write_release
from support.runs import tiny_run

from asr_lora.config.compose import Config, load, quote_override
from asr_lora.export import __main__ as command
from asr_lora.export.__main__ import main as export
from asr_lora.formats import ct2, ggml
from asr_lora.report import compare, report
from asr_lora.reporting.pages import shared_command, shared_value
from asr_lora.runs import folder as run
from asr_lora.train import train

SAME = (
    "hf:owner/name:nl", "mdc:a/b", "silence", "3e-4", "[0,0.25,1]", "null", "{text: sentence}", "sv-SE", "${seed}", "",
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shared"),
    [
        ("/home/an/cv-nl.tar.gz", "cv-nl.tar.gz"),
        ("/home/an/release/", "release"),
        ("~/cv-nl.tar.gz", "cv-nl.tar.gz"),
        ("~an", "~"),
        ("../an/cv-nl.tar.gz", "cv-nl.tar.gz"),
        ("data/cv-nl.tar.gz", "cv-nl.tar.gz"),
        ('"/home/an/my data, old/cv \\"nl\\".tar.gz"', '"cv \\"nl\\".tar.gz"'),
        ("'/home/an/it, there/x.tar'", "'x.tar'"),
        ("/home/an/my\\ data/x\\,y.tar", "x\\,y.tar"),
        ("shards:/home/an/shards", "shards:shards"),
        ("shards:https://host.example/an/shards", "shards:https://host.example/an/shards"),
        ("shards:https://an:secret@host.example/shards?key=secret#x", "shards:https://host.example/shards"),
        ("https://host.example/x", "https://host.example/x"),
        ("[{path: /home/me/x,weight: 2},{path: /home/me/y}]", "[{path: x,weight: 2},{path: y}]"),
        ("[{path:/home/me/x,weight:2}]", "[{path:x,weight:2}]"),
        ("[{source: /home/me/a b.tar.gz, language: en}]", "[{source: a b.tar.gz, language: en}]"),
        ("[{source: 'shards:/home/me/a, b'}, {source: noise}]", "[{source: 'shards:a, b'}, {source: noise}]"),
        ('{nl: runs/nl-1h, es: "/home/me/runs/es"}', '{nl: nl-1h, es: "es"}'),
        ("[/home/me/a,/home/me/b]", "[a,b]"),
        ("/home/me/a,/home/me/b", "a,b"),
        ("${oc.env:HOME}/x.tar.gz", "x.tar.gz"),
        ("/", "/"),
        *zip(SAME, SAME, strict=True),
    ],
)
def test_a_local_path_is_shortened_to_its_last_part(value: str, shared: str) -> None:
    assert shared_value("data.source", value) == shared
    assert shared_value("data.source", shared) == shared


@pytest.mark.parametrize("name", ["a b", "it's", 'a "b"', "a,b", "x=y", "[a]", "{b}", "~c", "é&$", "a\\b", "ends\\"])
def test_a_quoted_name_stays_quoted(name: str) -> None:
    assert shared_value("data.source", quote_override(f"/home/an/{name}")) == quote_override(name)


def test_ids_on_the_hub_stay_and_the_home_folder_is_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openai/whisper-small", "openai/whisper-small@main", '"openai/whisper-small"'):
        assert shared_value("model.checkpoint", name) == name
    assert shared_value("export.push", "an/whisper-nl") == "an/whisper-nl"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai" / "whisper-small").mkdir(parents=True)
    assert shared_value("model.checkpoint", "openai/whisper-small") == "whisper-small"
    monkeypatch.setenv("HOME", "/home/an")
    assert shared_command("python -m asr_lora.train runs_dir=/home/an") == "python -m asr_lora.train 'runs_dir=~'"


def test_a_shortened_command_is_still_a_command(tmp_path: Path) -> None:
    command_line = (
        "python -m asr_lora.train 'data.source=\"/home/an/my data/cv.tar.gz\"' model.checkpoint=/home/an/whisper-small "
        "'eval.sets=[{source: /home/an/en.tar.gz,language: en}]' run_dir=/home/an/runs/x lora.r=4 ~data.exclude_ids"
    )
    assert shared_command(command_line) == (
        "python -m asr_lora.train 'data.source=\"cv.tar.gz\"' model.checkpoint=whisper-small "
        "'eval.sets=[{source: en.tar.gz,language: en}]' run_dir=x lora.r=4 '~data.exclude_ids'"
    )
    assert "/home" not in shared_command("python 'data.source=/home/an/x")  # from a damaged record


USER = "telltale"  # a part of every path of the run


@pytest.fixture(scope="module", params=["qv", "full"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Config:
    """A run with the user's name in all paths; its command line has quotes and lists."""
    home = tmp_path_factory.mktemp("home") / USER
    base = shutil.copytree(tiny_checkpoint, home / "my models, old" / "whisper-random")
    write_release(home / RELEASE)
    overrides = [
        *tiny_run(Path("x"), Path(quote_override(str(base))), home / "runs")[1:],
        f"lora={request.param}", "run_name=mine",
        f"data.sources=[{{path: {quote_override(str(home / RELEASE))},weight: 2}}]", "eval.limit=2",
        f"eval.sets=[{{source: {home / RELEASE},name: again}}]",
    ]  # fmt: skip
    typed = [override for override in overrides if override != "lora.r=4" or request.param == "qv"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ASR_LORA_CACHE", str(home / "cache"))
        config = load(typed)
        train(config, ["python", "-m", "asr_lora.train", *typed])
        report(config.run)
        (home / "runs" / "last").write_text(str(config.run))
        few = ["export.formats=[hf]", "export.clips=1", "export.long_minutes=null"]
        export(load([f"runs_dir={home / 'runs'}", "hardware=cpu", *few]))
    return config


def test_published_files_of_a_run_name_no_local_folder(trained: Config, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [run.tuned(trained.run), trained.run / "export" / "hf", trained.run / "report"]
    for name, module in {"ct2": ct2, "ggml": ggml}.items():
        folders.append(trained.run / "export" / name)
        if not folders[-1].exists():
            module.write(folders[1], "", folders[-1])
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    assert {"README.md", "config.json", "generation_config.json", "index.html"} <= {file.name for file in files}
    assert [str(file) for file in files if USER.encode() in file.read_bytes()] == []
    for folder in folders[:2]:
        card = (folder / "README.md").read_text()
        assert f'[{{path: "{RELEASE}",weight: 2}}]' in card and "runs_dir=runs" in card
        command.push(folder, replace(trained.export, push="owner/name"))
    assert USER not in capsys.readouterr().err.replace(str(trained.run), "")


def test_the_run_records_the_full_command(trained: Config) -> None:
    assert str(run.settings(trained.run)["command"]).count(f"/{USER}/") == 4


def test_a_comparison_names_only_its_runs(trained: Config) -> None:
    page = compare(str(trained.run), Path(trained.runs_dir)).read_text()
    assert "mine" in page and USER not in page
