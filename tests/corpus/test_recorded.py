"""Own recordings: whole after a kill, read by data.source as they are, and sentences from hostile files."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.corpora import lines_of, prepared
from support.pages import HOSTILE

from asr_lora.corpus import open_corpus
from asr_lora.corpus.prompts import read_prompts, reading_seconds
from asr_lora.corpus.recorded import RecordedFolder, speaker_id
from asr_lora.data.labels import text_problem
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.speech.audio import decode, encode_flac

ANNA, BEN = speaker_id("Anna"), speaker_id("Ben")
KEEPS = """
import sys
from pathlib import Path
from asr_lora.corpus.recorded import RecordedFolder, speaker_id
from asr_lora.speech.audio import encode_flac
import numpy as np
folder = RecordedFolder(Path(sys.argv[1]), "nl")
for at in range(int(sys.argv[3])):
    noise = np.random.default_rng(at).uniform(-0.1, 0.1, 8_000).astype(np.float32)
    folder.keep(speaker_id(sys.argv[2]), f"Zin {at % 15}.", encode_flac(noise, 16_000), 0.5)
    print(at, flush=True)
"""


def clip(seed: int = 0, seconds: float = 0.5) -> bytes:
    samples = np.random.default_rng(seed).uniform(-0.1, 0.1, int(16_000 * seconds)).astype(np.float32)
    return encode_flac(samples, 16_000)


def keeping(folder: Path, name: str, count: int) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", KEEPS, str(folder), name, str(count)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def is_whole(folder: Path) -> bool:
    rows = RecordedFolder(folder, "nl").rows()
    there = {file.name for file in (folder / "clips").iterdir()}
    return (
        {row.path for row in rows} <= there
        and not [name for name in there if name.startswith(".")]
        and all(len(decode(folder / "clips" / row.path)[0]) == 8_000 for row in rows)
    )


@pytest.mark.slow
def test_a_kill_at_any_moment_loses_no_kept_sentence(tmp_path: Path) -> None:
    chance = random.Random(0)
    for name in ("Anna", "Ben", "Carla"):
        process = keeping(tmp_path / "mine", name, 100_000)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(chance.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        kept = [first, *process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        assert is_whole(tmp_path / "mine")
        sentences = RecordedFolder(tmp_path / "mine", "nl").of_speaker(speaker_id(name))
        assert {f"Zin {int(at) % 15}." for at in kept} <= set(sentences)


@pytest.mark.slow
def test_two_processes_record_into_one_folder(tmp_path: Path) -> None:
    both = [keeping(tmp_path / "mine", name, 30) for name in ("Anna", "Ben")]
    for process in both:
        process.communicate(timeout=120)
    assert is_whole(tmp_path / "mine") and len(RecordedFolder(tmp_path / "mine", "nl").rows()) == 30


def test_a_new_recording_takes_the_place_of_the_speakers_own(tmp_path: Path) -> None:
    folder = RecordedFolder(tmp_path, "nl")
    for client, sentence in ((ANNA, "Een."), (BEN, "Een."), (ANNA, "Twee.")):
        folder.keep(client, sentence, clip(), 0.5)
    before = folder.rows()
    folder.keep(ANNA, "Een.", clip(1, 0.7), 0.7)
    first, *others = folder.rows()
    assert others == before[1:] and (first.sentence, first.milliseconds) == ("Een.", 700)
    assert first.path != before[0].path and not (tmp_path / "clips" / before[0].path).exists()
    assert (tmp_path / "clips" / first.path).read_bytes() == clip(1, 0.7)


def test_one_row_of_a_table_from_elsewhere_removes_no_file_outside(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    folder = RecordedFolder(tmp_path / "mine", "nl")
    folder.keep(ANNA, "Een.", clip(), 0.5)
    table = tmp_path / "mine/train.tsv"
    table.write_text(table.read_text().replace(folder.rows()[0].path, "../../precious.txt"))
    folder.keep(ANNA, "Een.", clip(), 0.5)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_data_source_reads_the_folder_as_it_is(words: list[str], tmp_path: Path) -> None:
    folder = RecordedFolder(tmp_path / "mine", "nl")
    sentences = [HOSTILE, '"Ja", zei hij.', '"Nee.', *(f"Dit is zin {at}." for at in range(9))]
    for at, sentence in enumerate(sentences):
        folder.keep(ANNA, sentence, clip(at), 0.5)
    corpus = open_corpus(tmp_path / "mine", "nl")
    found = corpus.tables["train"]
    assert corpus.shape == "Common Voice" and [each.text for each in found] == sentences
    assert {each.speaker for each in found} == {ANNA}
    lines = lines_of(prepared(words, tmp_path / "mine"))
    assert sorted(line["text"] for own in lines.values() for line in own) == sorted(sentences)
    assert all(lines.values())  # of a single speaker, too, dev and test are taken from the rest


def test_the_name_of_a_speaker_is_nowhere_in_the_folder(tmp_path: Path) -> None:
    assert speaker_id(" anna ") == ANNA != BEN
    RecordedFolder(tmp_path, "nl").keep(ANNA, "Een.", clip(), 0.5)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"anna" in (file.name.encode() + file.read_bytes()).lower()]
    for name, message in (("  ", "a name is needed"), ("\ud800", "characters that are no text")):
        with pytest.raises(ConfigError, match=f"speaker: .*{message}"):
            speaker_id(name)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("client_id\tpath\tsentence\n", "train.tsv is of another kind; name a folder of its own"),
        ("{header}a\tb.flac\tJa.\tde\t500\n", "has recordings in de, not in nl"),
        ("{header}a\tb.flac\tJa.\tnl\n", "line 2 of .*train.tsv is damaged"),
        ("{header}a\tb.flac\tJa.\tnl\tlong\n", "line 2 of .*train.tsv is damaged"),
        ("{header}a\tb.flac\tJa.\tnl\t" + "9" * 5000 + "\n", "line 2 of .*train.tsv is damaged"),
        ("\udcff\udcfe\udcff", "train.tsv is not UTF-8"),
    ],
)
def test_a_folder_with_something_else_is_refused_and_left_as_it_is(tmp_path: Path, table: str, message: str) -> None:
    written = table.format(header="client_id\tpath\tsentence\tlocale\tduration[ms]\n")
    (tmp_path / "train.tsv").write_bytes(written.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=f"record.out: .*{message}"):
        RecordedFolder(tmp_path, "nl")
    assert (tmp_path / "train.tsv").read_bytes() == written.encode(errors="surrogateescape")


def test_clips_stay_where_their_table_was_moved_and_what_a_kill_left_half_written_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RecordedFolder(tmp_path, "nl").keep(ANNA, "Een.", clip(), 0.5)
    (kept,) = (tmp_path / "clips").iterdir()
    (tmp_path / "clips" / f".{kept.name}.x1y2").write_bytes(b"half")
    (tmp_path / "train.tsv").rename(tmp_path / "test.tsv")
    assert RecordedFolder(tmp_path, "nl").rows() == [] and [*(tmp_path / "clips").iterdir()] == [kept]
    assert "train.tsv does not name 1 clips in clips/, which stay there; put back" in capsys.readouterr().err


def test_a_folder_that_cannot_be_locked_or_leads_elsewhere_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mine" / ".recording.lock").mkdir(parents=True)
    with pytest.raises(ExternalError, match=r"record\.out: cannot write .*mine: "):
        RecordedFolder(tmp_path / "mine", "nl")
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "clips").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"record\.out: .*clips is a link that leads out"):
        RecordedFolder(tmp_path / "linked", "nl")


# ---- sentences ----


def test_sentences_are_read_once_each_and_the_others_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["Een zin.", "", "Een  zin. ", "...", "lang " * 90, "../../../etc/passwd", HOSTILE, "a\x1b[31m\tb\x00c",
             "\u202eevil\u202c", "דבר אחר"]  # fmt: skip
    (tmp_path / "a.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prompts = read_prompts(tmp_path / "a.txt", "nl", text_problem)
    assert prompts.sentences == ["Een zin.", "../../../etc/passwd", HOSTILE, "a [31m b c", "evil", "דבר אחר"]
    assert prompts.left_out == {
        "empty sentence": [2], "there is another": [3], "sentence without a letter or digit": [4],
        "longer than 30 s": [5],
    }  # fmt: skip
    assert "a.txt: 1 of 10 sentences left out: longer than 30 s (line 5, ...)" in capsys.readouterr().err
    assert reading_seconds("x" * 100) < reading_seconds("字" * 100)


def test_sentences_of_a_table_are_those_of_its_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,sentence\n1,"Ja, nou."\n2,Nee.\n')
    assert read_prompts(tmp_path / "a.csv", "nl", text_problem).sentences == ["Ja, nou.", "Nee."]
    (tmp_path / "b.csv").write_text("een,twee\n1,Ja\n")
    with pytest.raises(ConfigError, match=r"^record\.prompts: no column of .*b\.csv holds the text"):
        read_prompts(tmp_path / "b.csv", "nl", text_problem)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n\n", "has no sentence that can be read"), (None, "no file or folder"), (b"\xff\x81\x00\x81", "is not UTF-8")],
)
def test_a_file_without_sentences_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^record\.prompts: .*{message}"):
        read_prompts(tmp_path / "a.txt", "nl", text_problem)


def test_what_the_recording_folder_writes_is_readable_by_others(tmp_path: Path) -> None:
    RecordedFolder(tmp_path, "nl").keep(ANNA, "Een.", clip(), 0.5)
    assert all(file.stat().st_mode & 0o044 for file in (tmp_path / "clips").iterdir())
