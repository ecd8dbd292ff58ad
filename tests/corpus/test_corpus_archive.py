"""The reader of archives: reads and writes no more than needed, nothing unsafe, no partial file."""

import gzip
import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.releases import RELEASE, clip_names, pack, refusal, write_lines, write_release

from asr_lora.corpus import open_corpus
from asr_lora.runtime.errors import ExternalError
from asr_lora.runtime.files import cache_dir


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "cache"))
    return cache_dir()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default release as a folder, and beside it as an archive whose tables come last."""
    folder = tmp_path_factory.mktemp("releases") / RELEASE
    write_release(folder)
    pack(folder, folder.parent / "last.tar.gz")
    return folder


def extracted(cache: Path) -> set[str]:
    return {path.name for path in cache.rglob("clips/*")}


def tar_of(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for member, content in members:
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["plain.tar", "really a.tar.gz called.tar", "no suffix", "short.tgz"])
def test_an_archive_is_detected_by_its_content_not_its_name(release: Path, tmp_path: Path, name: str):
    packed = pack(release, tmp_path / ("x.tar" if name == "plain.tar" else "x.tar.gz"))
    corpus = open_corpus(packed.rename(tmp_path / name), "nl")
    assert len(corpus.fetch(clip_names(corpus, "dev"))) == 4


def test_an_archive_of_the_bare_language_folder_is_named_after_itself(tmp_path: Path):
    home = write_release(tmp_path)
    assert open_corpus(pack(home, tmp_path / "bare.tar.gz"), "nl").release == "bare"


def test_jobs_that_read_one_archive_at_once_all_have_its_tables(release: Path):
    archive = release.parent / "last.tar.gz"
    with ThreadPoolExecutor(8) as jobs:
        found = list(jobs.map(lambda _: open_corpus(archive, "nl").release, range(16)))
    assert found == [RELEASE] * 16


def test_only_the_clips_asked_for_are_extracted_and_an_unknown_name_is_absent(release: Path, cache: Path):
    corpus = open_corpus(release.parent / "last.tar.gz", "nl")
    assert extracted(cache) == set()
    chosen = clip_names(corpus, "train")[3:5]
    assert list(corpus.fetch([*chosen, "unknown.mp3"])) == chosen
    assert extracted(cache) == set(chosen)


def test_opening_and_fetching_again_read_nothing(release: Path, tmp_path: Path):
    source = pack(release, tmp_path / "x.tar.gz")
    state = source.stat()
    corpus = open_corpus(source, "nl")
    files = corpus.fetch(clip_names(corpus, "dev"))
    source.write_bytes(bytes(state.st_size))  # unreadable, and yet the same by name, size and time
    os.utime(source, ns=(state.st_atime_ns, state.st_mtime_ns))
    again = open_corpus(source, "nl")
    assert again == corpus and again.fetch(clip_names(corpus, "dev")) == files


def test_another_archive_of_the_same_name_is_read_again(tmp_path: Path):
    write_release(tmp_path / RELEASE)
    source = pack(tmp_path / RELEASE, tmp_path / "x.tar.gz")
    assert len(open_corpus(source, "nl").tables["train"]) == 12
    write_lines(tmp_path / RELEASE / "nl" / "train.tsv", ["path\tsentence", "common_voice_train_00000.mp3\thoi"])
    assert len(open_corpus(pack(tmp_path / RELEASE, source), "nl").tables["train"]) == 1


def test_a_fetch_stops_reading_at_the_last_clip_that_it_needs(release: Path, tmp_path: Path):
    source = pack(release, tmp_path / "x.tar")
    corpus = open_corpus(source, "nl")
    first = min(corpus.sizes)
    with tarfile.open(source) as packed:
        third = packed.getmembers()[2].offset
    os.truncate(source, third)
    assert list(corpus.fetch([first])) == [first]
    with pytest.raises(ExternalError, match="cut short"):
        corpus.fetch([max(corpus.sizes)])


def test_nothing_but_plain_files_of_the_asked_language_is_ever_written(tmp_path: Path, cache: Path):
    def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
        made = tarfile.TarInfo(name)
        made.type, made.linkname = kind, target
        return made

    table = b"path\tsentence\n" + b"".join(b"%d.mp3\thoi\n" % number for number in range(9))
    source = tar_of(
        tmp_path / "hostile.tar.gz",
        (member("r/nl/train.tsv"), table),
        (member("./r/nl/clips/0.mp3"), b"good"),
        (member("r/nl/clips/1.mp3", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (member("r/nl/clips/2.mp3", tarfile.LNKTYPE, "r/nl/train.tsv"), b""),
        (member("r/nl/clips/3.mp3", tarfile.FIFOTYPE), b""),
        (member("r/nl/clips/4.mp3", tarfile.CHRTYPE), b""),
        (member("/r/nl/clips/5.mp3"), b"absolute"),
        (member("r/nl/clips/../../../nl/clips/6.mp3"), b"dotted"),
        (member("r/nl/clips/deeper/7.mp3"), b"deeper"),
        (member("r/es/clips/8.mp3"), b"Spanish"),
        (member("r/nl/clips/.."), b"parent"),
        (member("r/nl/clips/._0.mp3"), b"hidden"),
        (member("r/nl/../../evil.tsv"), b"dotted"),
        (member("r/es/other.tsv"), b"Spanish"),
    )
    before = {path for path in tmp_path.rglob("*") if cache not in path.parents and path != cache}
    corpus = open_corpus(source, "nl")
    assert set(corpus.fetch(clip_names(corpus, "train"))) == {"0.mp3"} == set(corpus.sizes)
    kept = {path.name for path in cache.rglob("*") if not path.is_dir()}
    assert kept == {"train.tsv", "members.json", "0.mp3"}
    assert {path for path in tmp_path.rglob("*") if cache not in path.parents and path != cache} == before


def test_an_interrupted_fetch_leaves_only_whole_clips(release: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = open_corpus(release.parent / "last.tar.gz", "nl")
    names = clip_names(corpus, "train")
    write, written = Path.write_bytes, []

    def interrupted(path: Path, content: bytes) -> int:
        if len(written) == 5:
            write(path, content[:10])
            raise KeyboardInterrupt
        written.append(path)
        return write(path, content)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "write_bytes", interrupted)
        corpus.fetch(names)
    assert len(extracted(cache)) == 5
    assert all(file.stat().st_size == corpus.sizes[name] for name, file in corpus.fetch(names).items())
    assert len(extracted(cache)) == len(names)


def test_a_gzip_of_several_members_is_read_to_its_end(release: Path, tmp_path: Path):
    content = pack(release, tmp_path / "x.tar").read_bytes()
    half = len(content) // 2
    (tmp_path / "two.tar.gz").write_bytes(gzip.compress(content[:half]) + gzip.compress(content[half:]))
    assert len(open_corpus(tmp_path / "two.tar.gz", "nl").sizes) == 22


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_an_archive_cut_short_is_refused_wherever_the_cut_lies(
    release: Path, tmp_path: Path, cache: Path, suffix: str, share: float
):
    source = pack(release, tmp_path / f"x{suffix}", "first")
    with tarfile.open(source) as packed:
        ends = packed.getmembers()[-1].offset_data + packed.getmembers()[-1].size
    whole = ends if suffix == ".tar" else source.stat().st_size  # after the last file of a .tar there is padding alone
    os.truncate(source, int(whole * share))
    message = refusal(source)
    assert "cut short or damaged; download it again" in message and f"({int(whole * share):,} bytes" in message
    assert not any(path.is_file() for path in cache.rglob("*"))


def test_a_tar_cut_between_two_files_is_refused(release: Path, tmp_path: Path):
    source = pack(release, tmp_path / "x.tar", "first")
    with tarfile.open(source) as packed:
        os.truncate(source, packed.getmembers()[-1].offset)
    assert "cut short or damaged" in refusal(source)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_an_archive_damaged_in_its_middle_is_refused(release: Path, tmp_path: Path, suffix: str):
    source = pack(release, tmp_path / f"x{suffix}", "first")
    content = bytearray(source.read_bytes())
    with tarfile.open(source) as packed:
        place = packed.getmembers()[-2].offset if suffix == ".tar" else len(content) // 2
    content[place] ^= 0xFF
    source.write_bytes(content)
    assert "cut short or damaged" in refusal(source)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"x" * 5000, gzip.compress(b"hello", mtime=0)],
    ids=["empty", "short", "long", "gzip of no tar"],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.tar.gz").write_bytes(content)
    assert "is no .tar or .tar.gz archive" in refusal(tmp_path / "x.tar.gz")


def test_an_archive_of_something_else_is_refused_with_what_it_holds(tmp_path: Path):
    source = tar_of(tmp_path / "photos.tar.gz", (tarfile.TarInfo("photos/cat.jpg"), b"cat"))
    message = refusal(source)
    assert "no nl/train.tsv in" in message and "(got: photos)" in message


def test_a_cache_that_cannot_be_written_is_reported_with_the_way_out(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ASR_LORA_CACHE", str(tmp_path / "file"))
    message = refusal(release.parent / "last.tar.gz")
    assert "cannot write" in message and "ASR_LORA_CACHE" in message


def test_a_full_disk_while_clips_are_extracted_is_reported(release: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    corpus = open_corpus(release.parent / "last.tar.gz", "nl")

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ExternalError, match="No space left on device; free some space there"):
        corpus.fetch(clip_names(corpus, "test"))
    assert extracted(cache) == set()


def test_an_archive_that_changed_after_it_was_opened_is_refused(release: Path, tmp_path: Path):
    source = pack(release, tmp_path / "x.tar.gz")
    corpus = open_corpus(source, "nl")
    tar_of(source, (tarfile.TarInfo("photos/cat.jpg"), b"cat"))
    with pytest.raises(ExternalError, match="has changed since it was opened"):
        corpus.fetch(clip_names(corpus, "dev"))
