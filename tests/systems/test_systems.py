"""Models of every kind on the same clips: what eval.models names, what servers answer, whose texts a table has."""

import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from support.releases import RELEASE, write_release
from support.runs import cache_in, tiny_run
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Processor,
)

from asr_lora.config.compose import load
from asr_lora.eval import compare_models
from asr_lora.evaluation import compare
from asr_lora.runs import folder as run
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import read_json, read_jsonl, write_jsonl
from asr_lora.systems import endpoint
from asr_lora.train import train


@pytest.fixture(scope="module")
def made(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Overrides of a comparison on four test clips, and the folder of a tiny run of that corpus."""
    folder = tmp_path_factory.mktemp("systems")
    write_release(folder / RELEASE)
    overrides = tiny_run(folder / RELEASE, tiny_checkpoint, folder / "runs")
    with cache_in(folder):
        train(config := load([*overrides, "eval.after=false"]))
    return [*overrides, "eval.limit=4", "model.checkpoint=null-and-void"], config.run


@pytest.fixture
def asked(made: tuple[list[str], Path], private_cache: Path, tmp_path: Path) -> list[str]:
    return [*made[0], f"eval.out={tmp_path / 'out'}"]


def scored(asked: list[str], *models: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns models.json and hypotheses.jsonl of a comparison."""
    folder = compare_models(load([*asked, f"eval.models=[{','.join(models)}]"]))
    return read_json(folder / "models.json"), read_jsonl(folder / "hypotheses.jsonl")


def test_a_checkpoint_a_run_an_adapter_and_a_table_share_a_table_with_the_figures_of_compare(
    made: tuple[list[str], Path], asked: list[str], tiny_checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A run's adapter is the run, whose base is the checkpoint; the name of a base without a Hub id is given."""
    adapter = f"{{model: {made[1]}/train/adapter, base: {tiny_checkpoint}, name: adapter}}"
    models = [f"{{model: {tiny_checkpoint}, name: base}}", f"{{model: {made[1]}, name: run}}", adapter]
    _, lines = scored(asked, *models)
    texts = [{"id": line["id"], "hypothesis": line["reference"].upper()} for line in reversed(lines)]
    write_jsonl(tmp_path / "theirs.jsonl", texts)
    capsys.readouterr()
    facts, lines = scored(asked, *models, f"{{hypotheses: {tmp_path}/theirs.jsonl, name: theirs}}")
    assert list(facts["models"]) == ["base", "run", "adapter", "theirs"] and facts["against"] == "base"
    assert facts["models"]["run"]["wer"] == facts["models"]["adapter"]["wer"]
    assert facts["models"]["theirs"]["wer"] == 0 and facts["models"]["theirs"]["rtfx"] is None
    lists = {name: [line["hypotheses"][name] for line in lines] for name in facts["models"]}
    found = compare([line["reference"] for line in lines], lists, "nl", [line["speaker"] for line in lines])
    for name, own in found.items():
        shared = own.keys() - {"runaways"}
        assert {key: facts["models"][name][key] for key in shared} == {key: own[key] for key in shared}
    table = " ".join(capsys.readouterr().out.split())
    assert "4 test clips" in table and "theirs" in table and "to base, points" in table
    assert facts["models"]["base"]["peak_memory_bytes"] > 0 and facts["models"]["base"]["bytes"] > 0
    page = (tmp_path / "out" / "page" / "index.html").read_text()
    assert "4 models on the same clips" in page and page.count("<audio") == len(lines)


def test_what_was_transcribed_is_not_transcribed_again_when_a_model_is_added(
    made: tuple[list[str], Path], asked: list[str], tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = f"{{model: {tiny_checkpoint}, name: base}}"
    scored(asked, base)
    capsys.readouterr()
    scored(asked, base, f"{{model: {made[1]}, name: run}}")
    err = capsys.readouterr().err
    assert "base, test: these clips were decoded before" in err and "decoding test, fine-tuned: 4/4" in err


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[int, Any]], list[bytes]]]:
    """A server's URL, its next answers (status and body; then texts), and what it was sent."""
    answers: list[tuple[int, Any]] = []
    got: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["content-length"]))
            got.append(self.path.encode() + b"\n" + str(self.headers).encode() + sent)
            status, answer = answers.pop(0) if answers else (200, {"text": " dit is een zin "})
            body = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told: Any) -> None:
            """Writes nothing: pytest shows what is written."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}/v1", answers, got
        serving.shutdown()
        thread.join()


def test_a_server_is_sent_each_clip_with_its_key_and_busy_ones_are_asked_again(
    asked: list[str], server: tuple[str, list[Any], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answers, got = server
    monkeypatch.setattr(endpoint, "WAIT", 0.0)
    monkeypatch.setenv("THEIR_KEY", "very-secret")
    answers += [(503, "busy"), (429, "slower")]
    facts, lines = scored(asked, f'{{model: "{url}", served: large, key: THEIR_KEY, name: theirs}}')
    assert [line["hypotheses"]["theirs"] for line in lines] == ["dit is een zin"] * 4
    assert len(got) == 6  # four clips, two of them twice
    for sent in got:
        assert sent.startswith(b"/v1/audio/transcriptions\n") and b"Bearer very-secret" in sent
        assert all(part in sent for part in (b"fLaC", b"large", b'name="language"', b"\r\nnl\r\n"))
    written = b"".join(path.read_bytes() for path in Path(load(asked).eval.out or "").rglob("*") if path.is_file())
    assert b"very-secret" not in written and facts["models"]["theirs"]["peak_memory_bytes"] is None


def test_a_server_that_fails_midway_is_not_asked_again_for_what_it_gave(
    asked: list[str], server: tuple[str, list[Any], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, answers, got = server
    monkeypatch.setattr(endpoint, "AT_ONCE", 1)
    theirs = f'{{model: "{url}", served: large, name: theirs}}'
    answers += [(200, {"text": "een"}), (200, {"text": "twee"}), (401, "no such key")]
    with pytest.raises(ExternalError, match=r"eval.models: .*/audio/transcriptions refuses with status 401: no such"):
        scored(asked, theirs)
    got.clear()
    _, lines = scored(asked, theirs)
    assert [line["hypotheses"]["theirs"] for line in lines] == ["een", "twee", "dit is een zin", "dit is een zin"]
    assert len(got) == 2


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((200, "<html>"), r"answers without a text: '<html>'"),
        ((200, ["text"]), r"answers without a text"),
        ((200, {"text": 3}), r"answers with a text that is none: 3"),
        ((404, "no model"), r"refuses with status 404: no model"),
    ],
)
def test_an_answer_without_a_text_is_an_error_of_one_line(
    asked: list[str], server: tuple[str, list[Any], list[bytes]], answer: tuple[int, Any], line: str
) -> None:
    url, answers, _ = server
    answers += [answer] * 4
    with pytest.raises(ExternalError, match=line):
        scored(asked, f'{{model: "{url}", served: large}}')


def test_a_server_that_does_not_answer_is_an_error_after_some_tries(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "WAIT", 0.0)
    with pytest.raises(ExternalError, match=r"does not answer after 5 tries \(.*what it gave is kept"):
        scored(asked, '{model: "http://127.0.0.1:9/v1", served: large}')


def test_a_model_of_another_architecture_transcribes_by_transformers_pipeline(asked: list[str], tmp_path: Path) -> None:
    letters = {letter: at for at, letter in enumerate(["<pad>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz"])}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    tokenizer = Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"), pad_token="<pad>", unk_token="<unk>")
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(tmp_path / "ctc")
    torch.manual_seed(0)
    settings = Wav2Vec2Config(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(settings).save_pretrained(tmp_path / "ctc")
    facts, lines = scored(asked, f"{{model: {tmp_path}/ctc}}")
    assert facts["models"]["ctc"]["kind"] == "wav2vec2" and facts["models"]["ctc"]["rtfx"] > 0
    assert all(set(line["hypotheses"]["ctc"]) <= set("abcdefghijklmnopqrstuvwxyz ") for line in lines)
    assert any(line["hypotheses"]["ctc"] for line in lines)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([], r"eval.models: .* has the columns nothing; it needs one of id, .* and one of hypothesis"),
        ([{"id": "a", "words": "x"}], r"has the columns id, words; it needs one of id"),
        ([{"id": "a", "text": "x"}], r"4 are missing \(.*\), 1 are of no clip \(a\); eval.limit and data.seed"),
        ([{"id": "a", "text": "x"}, {"id": "a", "text": "y"}], r"has two texts of a \(line 2\); leave one"),
    ],
)
def test_a_table_without_a_text_for_every_clip_is_refused_by_name(
    asked: list[str], rows: list[dict[str, str]], line: str, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "theirs.jsonl", rows)
    with pytest.raises(ConfigError, match=line):
        scored(asked, f"{{hypotheses: {tmp_path}/theirs.jsonl}}")


def test_a_table_may_name_clips_by_their_files(asked: list[str], made: tuple[list[str], Path], tmp_path: Path) -> None:
    clips = read_jsonl(run.manifest(made[1], "test"))[:4]
    names = [clips[0]["path"], Path(clips[1]["path"]).name, Path(clips[2]["path"]).stem, clips[3]["id"]]
    lines = [f"{name},{clip['text']}" for name, clip in zip(names, clips, strict=True)]
    (tmp_path / "theirs.csv").write_text("\n".join(["file,prediction", *lines]), encoding="utf-8")
    facts, _ = scored(asked, f"{{hypotheses: {tmp_path}/theirs.csv}}")
    assert facts["models"]["theirs.csv"]["wer"] == 0


@pytest.mark.parametrize(
    ("models", "line"),
    [
        ("{model: a, hypotheses: b}", "eval.models: must be {model: ...} or {hypotheses: ...}, one of the two"),
        ("{name: a}", "eval.models: must be {model: ...} or {hypotheses: ...}, one of the two"),
        ("{hypotheses: a.csv, base: b}", "eval.models.base: must be left out with hypotheses, got b"),
        ("{model: runs/a, served: b}", "eval.models: must be without served and key, unless model is a URL, got b"),
        (
            '{model: "http://x/v1", served: b, key: "sk-secret"}',
            "eval.models.key: must be the name of an environment variable, never the key itself, got ***",
        ),
        (",".join(["{model: a}"] * 11), "eval.models: must be at most 10, as many as a page can show, got 11"),
    ],
)
def test_items_that_mean_nothing_are_refused(asked: list[str], models: str, line: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(line)):
        load([*asked, f"eval.models=[{models}]"])


def test_what_holds_no_model_is_refused_and_what_it_lacks_is_named(
    asked: list[str], made: tuple[list[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"eval.models: .*empty holds no model: no run \(train/config.yaml\)"):
        scored(asked, f"{{model: {tmp_path}/empty}}")
    with pytest.raises(ConfigError, match=r"eval.models.model: no file or folder .*none"):
        scored(asked, f"{{model: {tmp_path}/no/such/none}}")
    with pytest.raises(ConfigError, match=r"eval.models: a is the name of two; give one another, name="):
        scored(asked, f"{{model: {made[1]}, name: a}}", f"{{model: {made[1]}, name: a}}")
    with pytest.raises(ConfigError, match=r"eval.against: b is none of a"):
        scored([*asked, "eval.against=b"], f"{{model: {made[1]}, name: a}}")
    with pytest.raises(ConfigError, match=r"http://x/v1 serves models by name; add served="):
        scored(asked, '{model: "http://x/v1"}')
    with pytest.raises(ConfigError, match=r"the environment variable NO_SUCH is not set; export NO_SUCH="):
        scored(asked, '{model: "http://x/v1", served: b, key: NO_SUCH}')
    shutil.copytree(made[1] / "train" / "adapter", tmp_path / "adapter")
    with pytest.raises(ExternalError, match=r"the adapter in .* is for .*, which is not on this machine.*base: "):
        scored(asked, f"{{model: {tmp_path}/adapter}}")


def test_a_run_that_was_trained_on_these_clips_is_named(
    made: tuple[list[str], Path], asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    facts, _ = scored([*asked, "eval.split=dev"], f"{{model: {made[1]}, name: run}}")
    assert facts["models"]["run"]["trained_on"] == 0
    manifest = run.manifest(made[1], "train")
    before = manifest.read_text()
    try:
        lines = read_jsonl(manifest)
        write_jsonl(manifest, [lines[0] | {"sha256": read_jsonl(run.manifest(made[1], "test"))[0]["sha256"]}])
        facts, _ = scored(asked, f"{{model: {made[1]}, name: run}}")
    finally:
        manifest.write_text(before)
    assert facts["models"]["run"]["trained_on"] == 1
    assert "run was trained on 1 of these 4 clips: its rate is no estimate" in capsys.readouterr().err


def test_a_source_without_splits_has_the_test_clips_that_a_run_would_have(
    asked: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    clips = tmp_path / "table"
    clips.mkdir()
    for at in range(40):
        soundfile.write(clips / f"{at}.wav", np.random.default_rng(at).uniform(-0.1, 0.1, 16_000), 16_000)
    rows = "".join(f"{at}.wav,Dit is zin nummer {at}.\n" for at in range(40))
    (clips / "table.csv").write_text(f"path,sentence\n{rows}")
    given = [*asked, f"data.source={clips}", "eval.limit=null"]
    facts, lines = scored(given, f"{{model: {tiny_checkpoint}}}")
    assert facts["clips"] < 40
    (tmp_path / "ids.txt").write_text(lines[0]["id"])
    _, others = scored([*given, f"data.exclude_ids={tmp_path}/ids.txt"], f"{{model: {tiny_checkpoint}}}")
    assert lines[0]["id"] not in [line["id"] for line in others]


def test_a_cache_that_was_cut_short_goes_on(
    asked: list[str], server: tuple[str, list[Any], list[bytes]], private_cache: Path
) -> None:
    url, _, got = server
    theirs = f'{{model: "{url}", served: large, name: theirs}}'
    scored(asked, theirs)
    (kept,) = (private_cache / "hypotheses-3").glob("*.jsonl")
    kept.write_bytes(kept.read_bytes()[:-9])
    got.clear()
    for _ in range(2):
        scored(asked, theirs)
    assert len(got) == 1


def test_halves_of_surrogate_pairs_are_written_as_question_marks(
    asked: list[str], server: tuple[str, list[Any], list[bytes]]
) -> None:
    url, answers, _ = server
    answers += [(200, '{"text": "a\\ud800"}')] * 4
    _, lines = scored(asked, f'{{model: "{url}", served: large, name: theirs}}')
    assert {line["hypotheses"]["theirs"] for line in lines} == {"a?"}


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("http://user:s3cret@host/v1", "a server's URL must have no user, password or query"),
        ("http://host/v1?token=s3cret", "a server's URL must have no user, password or query"),
        ("http://host:port/v1", "a server's URL is none"),
    ],
)
def test_a_url_that_is_none_or_holds_a_secret_is_refused_without_it(asked: list[str], url: str, line: str) -> None:
    with pytest.raises(ConfigError, match=line) as refused:
        scored(asked, f'{{model: "{url}", served: large}}')
    assert "s3cret" not in str(refused.value)


def test_a_key_with_a_line_break_is_taken_without_it_and_other_characters_are_refused(
    asked: list[str], server: tuple[str, list[Any], list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _, got = server
    theirs = f'{{model: "{url}", served: large, key: THEIR_KEY}}'
    monkeypatch.setenv("THEIR_KEY", "abc\n")
    scored(asked, theirs)
    assert all(b"Bearer abc\n" in sent.replace(b"\r", b"") for sent in got)
    monkeypatch.setenv("THEIR_KEY", "a\u00e9\u4e2d")
    with pytest.raises(ConfigError, match="THEIR_KEY holds characters that no key has"):
        scored(asked, theirs)


@pytest.mark.parametrize("setting", ["eval.max_regression=0.01", "eval.strict=true", "eval.prompt=a"])
def test_settings_of_runs_are_refused_rather_than_ignored(
    asked: list[str], tiny_checkpoint: Path, setting: str
) -> None:
    with pytest.raises(ConfigError, match=r"must be left out with eval.models"):
        scored([*asked, setting], f"{{model: {tiny_checkpoint}}}")


def test_a_file_that_is_no_ggml_model_is_refused_before_whisper_cpp_crashes(asked: list[str], tmp_path: Path) -> None:
    (tmp_path / "ggml-model.bin").write_bytes(b"junk" * 100)
    with pytest.raises(ConfigError, match=r"ggml-model.bin is no model of whisper.cpp"):
        scored(asked, f"{{model: {tmp_path}/ggml-model.bin}}")
