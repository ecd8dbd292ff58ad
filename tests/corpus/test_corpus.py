"""The reader of Common Voice: every layout, raw tables, and a clear error for a folder that is no release."""

from pathlib import Path

import pytest
import soundfile
from support.releases import COLUMNS, RELEASE, clip_names, pack, refusal, tone, utterances, write_lines, write_release

from asr_lora.corpus import open_corpus
from asr_lora.corpus.records import Utterance


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default release as a folder, and in each order as an archive beside it."""
    folder = tmp_path_factory.mktemp("releases") / RELEASE
    write_release(folder)
    for order in ("first", "last", "between"):
        pack(folder, folder.parent / f"{order}.tar.gz", order)
    return folder


# --- layouts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("within", ["..", ".", "nl"])
def test_a_folder_is_read_from_above_the_release_from_the_release_and_from_the_language(release: Path, within: str):
    corpus = open_corpus(release / within, "nl")
    assert (corpus.release, corpus.language) == (RELEASE, "nl")
    assert {split: len(utterances) for split, utterances in corpus.tables.items()} == {"train": 12, "dev": 4, "test": 6}
    found = corpus.fetch(clip_names(corpus, "dev"))
    assert {soundfile.info(file).duration for file in found.values()} == {0.4}


@pytest.mark.parametrize("order", ["first", "last", "between"])
def test_an_archive_reads_as_its_folder_wherever_the_tables_lie(release: Path, order: str):
    packed, unpacked = open_corpus(release.parent / f"{order}.tar.gz", "nl"), open_corpus(release, "nl")
    assert (packed.release, packed.tables) == (unpacked.release, unpacked.tables)
    assert (packed.durations, packed.sizes) == (unpacked.durations, unpacked.sizes)
    names = clip_names(packed, "test")
    here, there = packed.fetch(names), unpacked.fetch(names)
    assert list(here) == list(there) == names
    assert all(here[name].read_bytes() == there[name].read_bytes() for name in names)


@pytest.mark.parametrize(
    "name", ["a b", "a,b", "a=b", "it's", 'say "hi"', "[x] (y)", "{z}", "~tilde", "R&D $HOME;#", "é 日本語", "50%"]
)
def test_paths_with_odd_names_work(release: Path, tmp_path: Path, name: str):
    (tmp_path / name).mkdir()
    (tmp_path / name / "nl").symlink_to(release / "nl")
    archive_ = pack(release, tmp_path / name / f"{name}.tar.gz")
    for source in (tmp_path / name, archive_):
        corpus = open_corpus(source, "nl")
        assert len(corpus.fetch(clip_names(corpus, "dev"))) == 4


def test_a_leading_tilde_is_the_home_folder(release: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(release.parent))
    assert open_corpus(Path("~") / RELEASE, "nl").source == str(release)


def test_a_release_outside_a_cv_corpus_folder_is_named_after_its_own_folder(tmp_path: Path):
    home = write_release(tmp_path / "mine")
    named = home.rename(tmp_path / "dutch")
    assert open_corpus(named, "nl").release == "dutch"
    write_release(tmp_path / "ours" / "cv-corpus-real-nl")
    assert open_corpus(tmp_path / "ours", "nl").release == "cv-corpus-real-nl"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_sentences_stay_raw(tmp_path: Path):
    sentences = ["null", "NA", '"Open quote', "l'été", "één\u2028regel", "ver\x0btab\x85", " blank ", "", "\\t"]
    rows = [row | {"sentence": text} for row, text in zip(utterances("train", 9, 3), sentences, strict=True)]
    write_release(tmp_path, splits={"train": rows})
    corpus = open_corpus(tmp_path, "nl")
    assert [each.text for each in corpus.tables["train"]] == sentences
    assert set(corpus.tables) == {"train"}
    kept = [column for column in COLUMNS if column not in ("client_id", "path", "sentence")]
    assert all(list(each.extra) == kept and each.extra["age"] == "" for each in corpus.tables["train"])


def test_a_release_that_pandas_wrote_again_is_read_without_its_quotes(tmp_path: Path):
    table = write_release(tmp_path) / "train.tsv"
    lines = table.read_text(encoding="utf-8").splitlines()
    for at, cell in ((1, '"Ja", zei hij.'), (2, "Twee regels")):
        old = lines[at].split("\t")[COLUMNS.index("sentence")]
        lines[at] = lines[at].replace(old, '"{}"'.format(cell.replace('"', '""').replace(" regels", "\nregels")))
    write_lines(table, lines)
    assert [each.text for each in open_corpus(tmp_path, "nl").tables["train"]][:2] == ['"Ja", zei hij.', "Twee regels"]


def test_a_byte_order_mark_and_windows_line_ends_do_not_change_a_table(tmp_path: Path):
    table = write_release(tmp_path) / "train.tsv"
    before = open_corpus(tmp_path, "nl").tables
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    assert open_corpus(tmp_path, "nl").tables == before


def test_a_line_of_another_width_is_left_out_and_listed(tmp_path: Path):
    table = write_release(tmp_path, columns=["path", "sentence", "locale"]) / "train.tsv"
    write_lines(
        table, ["path\tsentence\tlocale", "a.mp3\teen\tnl", "b.mp3\ttwee", "c.mp3\tdrie\tnl\tx", "d.mp3\tvier\tnl"]
    )
    corpus = open_corpus(tmp_path, "nl")
    assert clip_names(corpus, "train") == ["a.mp3", "d.mp3"]
    assert corpus.malformed["train"] == ["line 3: 2 columns, not 3", "line 4: 4 columns, not 3"]
    assert corpus.malformed["dev"] == corpus.malformed["clip_durations"] == []


def test_path_cells_of_old_releases_lead_to_their_clips_and_none_leads_out(tmp_path: Path):
    home = write_release(tmp_path)
    (home / "clips" / "old.mp3").write_bytes(tone("old", 0.3))
    (home / "secret.mp3").write_bytes(b"no clip")
    cells = ["clips/old.mp3", "old", "../secret.mp3", str(home / "secret.mp3"), "..", ""]
    write_lines(home / "train.tsv", ["path\tsentence", *(f"{cell}\thoi" for cell in cells)])
    corpus = open_corpus(tmp_path, "nl")
    assert clip_names(corpus, "train")[:2] == ["old.mp3", "old.mp3"]
    assert corpus.fetch([*clip_names(corpus, "train"), *cells]) == {"old.mp3": home / "clips" / "old.mp3"}


def test_durations_are_seconds_and_invalid_ones_are_left_out_and_listed(tmp_path: Path):
    home = write_release(tmp_path)
    lines = ["clip\tduration[ms]", "a.mp3\t4968", "clips/b\t0", "c.mp3\t-1", "d.mp3\tnan", "e.mp3\t"]
    write_lines(home / "clip_durations.tsv", lines)
    corpus = open_corpus(tmp_path, "nl")
    assert corpus.durations == {"a.mp3": 4.968, "b.mp3": 0.0}
    assert len(corpus.malformed["clip_durations"]) == 3


def test_without_durations_the_sizes_of_the_clips_are_known(tmp_path: Path):
    home = write_release(tmp_path / RELEASE, durations=False)
    sizes = {clip.name: clip.stat().st_size for clip in (home / "clips").iterdir()}
    for source in (tmp_path / RELEASE, pack(tmp_path / RELEASE, tmp_path / "x.tar.gz")):
        corpus = open_corpus(source, "nl")
        assert corpus.durations == {} and corpus.sizes == sizes


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_missing_path_is_refused_with_the_nearest_one(release: Path):
    assert f"did you mean {release.parent / 'first.tar.gz'}?" in refusal(release.parent / "frist.tar.gz")
    assert "no file or folder" in refusal(release / "no" / "such" / "place")


def test_a_folder_that_is_no_release_is_refused_with_what_it_lacks_and_holds(tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).touch()
    assert refusal(tmp_path) == (
        f"data.source: no speech of a known shape in {tmp_path} (got: a.txt, b.txt); "
        "known are Common Voice's and Kaldi's folders, tables (.csv, .tsv, .jsonl, ...), a text, subtitles or "
        "segments beside each recording, what datasets reads (.parquet, .arrow) and the corpora that docs/data.md lists"
    )
    (tmp_path / "clips").mkdir()
    assert "Common Voice has clips/ and train.tsv, here without train.tsv" in refusal(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_another_language_is_refused_with_those_there_are_and_the_way_out(tmp_path: Path, packed: bool):
    home = write_release(tmp_path / RELEASE, "es")
    source = pack(tmp_path / RELEASE, tmp_path / "x.tar.gz") if packed else home.parent
    assert "holds es, not nl; write data.language=es" in refusal(source)


def test_the_language_of_a_folder_that_the_user_named_is_that_of_its_table(tmp_path: Path):
    home = write_release(tmp_path, "es").rename(tmp_path / "nederlands")
    assert "holds es, not nl; write data.language=es" in refusal(home)
    assert len(open_corpus(home, "es").tables["train"]) == 12


def test_two_releases_side_by_side_are_refused(tmp_path: Path):
    for release_ in ("cv-corpus-24.0", "cv-corpus-25.0"):
        write_release(tmp_path / "both" / release_)
    assert "holds nl more than once" in refusal(tmp_path / "both")
    assert "holds nl more than once" in refusal(pack(tmp_path / "both", tmp_path / "both.tar.gz"))


@pytest.mark.parametrize("table", ["train", "test"])
def test_a_table_without_sentences_is_refused_with_its_file_and_columns(tmp_path: Path, table: str):
    home = write_release(tmp_path)
    write_lines(home / f"{table}.tsv", ["client_id\tpath\ttext", "x\ty.mp3\tz"])
    message = refusal(tmp_path)
    assert f"{home / table}.tsv has no column sentence" in message and "(got: client_id, path, text)" in message


def test_a_table_that_is_not_utf8_is_refused(tmp_path: Path):
    home = write_release(tmp_path)
    (home / "dev.tsv").write_bytes("path\tsentence\na.mp3\tété\n".encode("latin-1"))
    assert "dev.tsv is not UTF-8 (at byte 20)" in refusal(tmp_path)


def test_columns_named_like_times_of_a_segment_are_only_columns(tmp_path: Path):
    home = write_release(tmp_path)
    write_lines(home / "train.tsv", ["path\tsentence\tstart\tend\tbytes", "a.mp3\thoi\tx\tnan\t-1"])
    (utterance,) = open_corpus(tmp_path, "nl").tables["train"]
    assert utterance == Utterance("a.mp3", "hoi", extra={"start": "x", "end": "nan", "bytes": "-1"})


def test_a_name_that_no_file_can_have_is_not_in_the_release(tmp_path: Path):
    home = write_release(tmp_path)
    write_lines(home / "train.tsv", ["path\tsentence", f"{'9' * 300}.mp3\thoi"])
    corpus = open_corpus(tmp_path, "nl")
    assert corpus.fetch(clip_names(corpus, "train")) == {}


@pytest.mark.parametrize("command", [
    "ffmpeg -ss 1 -t 2 -i {} -f wav - |", "ffmpeg -i {} -af atempo=2 -f wav - |", "ffmpeg -i {} -filter:a x -f wav - |",
    "flac -c -d -s --skip=1:00 {} |", "sph2pipe -f wav -t 0:5 {} |", "/usr/bin/sox {} -t wav - speed 1.1 |",
])  # fmt: skip
def test_a_command_of_kaldi_that_changes_the_sound_is_refused(tmp_path: Path, command: str) -> None:
    (tmp_path / "wav.scp").write_text(f"u1 {command.format('a.flac')}\n")
    (tmp_path / "text").write_text("u1 ja\n")
    assert "line 1 of" in (message := refusal(tmp_path)) and "is a command and no file" in message
