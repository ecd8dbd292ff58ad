"""The length that a header states, checked against what the file holds; libsndfile reads no further than that length.

Streams from a pipe state none, joined files that of the first one, and a VBR mp3 without a Xing header leaves it to an
estimate. Where the stated length is untrue, the file is read again with another header.
"""

import io
import re
from functools import cache
from typing import IO, Any

from asr_lora.runtime.errors import ExternalError

PADDING_FRAMES = 4  # of an mp3: encoders add that many at its end, which are no sound and are not decoded
WINDOW = 2**24  # bytes searched for the next mp3 frame: more than a picture among the tags
LONGEST_FRAME = 2**18  # bytes of a FLAC frame
MOST_HEADERS = 4  # of FLAC frames tried from the end: samples may look like one, and the last frame be cut off
MOST_CHUNKS = 10_000  # of a wav
IGNORED = 1024  # bytes behind the samples of a wav: tags and padding, less than 0.05 s of speech
KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),  # MPEG-1, layer III
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),  # MPEG-2 and 2.5
}
RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}  # Hz, by version
SAME = 0xFFFE0C00  # the bits of a frame's header that all frames of an mp3 share: version, layer and rate
CRC8, CRC16 = (0x07, 8), (0x8005, 16)  # polynomial and bits, as FLAC uses them


def with_true_length(file: IO[bytes], at: int) -> IO[bytes] | None:
    """Returns `file` with a header that leads libsndfile to its end; None where its own does.

    `at` is the byte up to which libsndfile read it to decode all that its header states.
    Raises ExternalError, with the reason alone, where sound lies behind `at` that no header leads to.
    """
    size, magic = file.seek(0, io.SEEK_END), _read(file, 0, 4)
    if magic == b"OggS":
        _check_ogg(file)
        return None
    first = _behind_id3(file, 0)
    if _read(file, first, 4) == b"fLaC":
        return _flac(file, first, size, at)
    if at >= size:
        return None
    if magic in (b"RIFF", b"RF64"):
        return _wav(file, size)
    return _au(file) if magic == b".snd" else _mp3(file, first, size, at)


class _WithHead(io.RawIOBase):
    """A file whose first `skip` bytes are replaced by `head`."""

    def __init__(self, file: IO[bytes], head: bytes, skip: int) -> None:
        self._file, self._head, self._shift = file, head, skip - len(head)
        self._size = file.seek(0, io.SEEK_END) - self._shift
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._head[self._at : self._at + len(buffer)]
        if len(data) < len(buffer):  # libsndfile takes a short read for the end of the file
            data += _read(self._file, self._at + len(data) + self._shift, len(buffer) - len(data))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _with_head(file: IO[bytes], head: bytes, skip: int) -> IO[bytes]:
    return io.BufferedReader(_WithHead(file, head, skip), 2**16)


def _read(file: IO[bytes], at: int, count: int) -> bytes:
    file.seek(at)
    return file.read(count)


def _wav(file: IO[bytes], size: int) -> IO[bytes] | None:
    """Mends the size of the samples where what follows them is neither chunks nor zeros."""
    at, sizes, chunk = 12, b"", b""
    for _ in range(MOST_CHUNKS):
        if len(chunk := _read(file, at, 8)) < 8 or chunk[:4] == b"data":
            break
        if chunk[:4] == b"ds64":
            sizes = _read(file, at + 8, 16)
        at += 8 + (length := int.from_bytes(chunk[4:], "little")) + length % 2
    length = int.from_bytes(chunk[4:], "little")
    if length == 2**32 - 1 and sizes:
        length = int.from_bytes(sizes[8:], "little")
    end = at + 8 + length
    if chunk[:4] != b"data" or size - end <= IGNORED or _is_chunks(file, end + length % 2, size):
        return None
    if not any(_read(file, end, WINDOW)):
        return None
    # As a plain RIFF: libsndfile reads a size of 2**32 - 1 as the rest of the file.
    head = bytearray(_read(file, 0, at)) + b"data" + b"\xff" * 4
    head[:8] = b"RIFF" + b"\xff" * 4
    return _with_head(file, bytes(head).replace(b"ds64", b"JUNK", 1) if sizes else bytes(head), at + 8)


def _is_chunks(file: IO[bytes], at: int, size: int) -> bool:
    """Returns whether RIFF chunks, such as LIST or id3, follow each other from `at` to the end."""
    for _ in range(MOST_CHUNKS):
        if at >= size - 8:
            break
        chunk = _read(file, at, 8)
        if not re.fullmatch(rb"[\w ]{4}", chunk[:4]):
            return not any(chunk) and not any(_read(file, at, WINDOW))
        at += 8 + (length := int.from_bytes(chunk[4:], "little")) + length % 2
    return at <= size + 1


def _au(file: IO[bytes]) -> IO[bytes] | None:
    """Mends the size of the samples of a Sun .au file, which has nothing behind them."""
    head = _read(file, 0, 12)
    if head[8:] == b"\xff" * 4:
        return None
    return _with_head(file, head[:8] + b"\xff" * 4, 12)


def _check_ogg(file: IO[bytes]) -> None:
    """Refuses streams that are chained one behind the other: libsndfile reads the first alone."""
    content = _read(file, 0, -1)
    at = 0
    while content[at : at + 6] == b"OggS\0\x02":  # the first pages of streams side by side
        segments = content[at + 27 : at + 27 + int.from_bytes(content[at + 26 : at + 27])]
        at += 27 + len(segments) + sum(segments)
    if content.find(b"OggS\0\x02", at) > 0:
        raise ExternalError("holds several Ogg streams, one behind the other, of which libsndfile reads the first")


def _flac(file: IO[bytes], first: int, size: int, reached: int) -> IO[bytes] | None:
    """Mends the number of samples in STREAMINFO by the last frame. None for a file that is cut off."""
    info = _read(file, first + 8, 34)
    if len(info) < 34:
        return None
    stated, block = int.from_bytes(info[13:18]) & (2**36 - 1), int.from_bytes(info[:2])
    begin = max(first + 42, size - LONGEST_FRAME)
    tail = _read(file, begin, size - begin)
    if tail[-128:-125] == b"TAG":
        tail = tail[:-128]
    if (second := tail.find(b"fLaC\0\0\0\x22")) >= 0:
        reached = min(reached, begin + second)
    at = cut = len(tail)
    for _ in range(MOST_HEADERS):
        if (at := _last_flac_frame(tail, at)) < 0:
            break
        before, own = _flac_frame(tail[at : at + 16], block) or (0, 0)
        if before + own == stated and begin + at < reached:
            return None
        if before + own == stated:  # libsndfile read all that is stated, but not this
            raise ExternalError("holds several FLAC streams, one behind the other, of which libsndfile reads the first")
        if not _crc(tail[at:], CRC16) or (not stated and not _crc(tail[at:cut], CRC16)):  # 0 with its own checksum
            number = int.from_bytes(info[13:18]) >> 36 << 36 | before + own
            head = _read(file, 0, first + 8) + info[:13] + number.to_bytes(5) + info[18:]
            return _with_head(file, head, first + 42)
        cut = at
    return None


def _last_flac_frame(data: bytes, end: int) -> int:
    """Returns where the last FLAC frame begins that does before `end`; -1 for none."""
    while (end := data.rfind(b"\xff", 0, end)) >= 0:
        if data[end + 1 : end + 2] in (b"\xf8", b"\xf9") and _flac_frame(data[end : end + 16], 1) is not None:
            break
    return end


def _flac_frame(header: bytes, block: int) -> tuple[int, int] | None:
    """Returns the samples before a FLAC frame and in it; None where `header` begins none.

    `block` is the size of all blocks but the last where they are of one size. RFC 9639, section 9.1.
    """
    header = header.ljust(16, b"\0")  # a last frame of silence is shorter
    if header[1] | 1 != 0xF9 or header[2] >> 4 == 0 or header[3] & 1:
        return None
    ones = 8 - (header[4] ^ 0xFF).bit_length()
    if ones in (1, 8) or any(byte >> 6 != 2 for byte in header[5 : 4 + max(1, ones)]):
        return None
    number, at = header[4] & (0x7F >> ones), 4 + max(1, ones)
    for byte in header[5:at]:
        number = number << 6 | byte & 0x3F
    code, rate = header[2] >> 4, header[2] & 15
    extra = {6: 1, 7: 2}.get(code, 0)
    own = int.from_bytes(header[at : at + extra]) + 1
    at += extra + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if _crc(header[:at], CRC8) != header[at]:
        return None
    if not extra:
        own = 192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8
    return number * (1 if header[1] & 1 else block), own


def _crc(data: bytes, kind: tuple[int, int]) -> int:
    _, bits = kind
    table, crc, mask = _crc_table(kind), 0, (1 << bits) - 1
    for byte in data:
        crc = (crc << 8 ^ table[crc >> bits - 8 ^ byte]) & mask
    return crc


@cache
def _crc_table(kind: tuple[int, int]) -> list[int]:
    polynomial, bits = kind
    table = [value << bits - 8 for value in range(256)]
    for _ in range(8):
        table = [value << 1 ^ (polynomial | 1 << bits) * (value >> bits - 1) for value in table]
    return table


def _mp3(file: IO[bytes], first: int, size: int, at: int) -> IO[bytes] | None:
    """Mends the number of frames, or gives one, where more frames than padding lie behind `at`."""
    if all(_next_frame(_read(file, at, window), PADDING_FRAMES + 1) is None for window in (2**16, WINDOW)):
        return None
    begin = _read(file, first, 2**16)
    if (start := _next_frame(begin, 3)) is None:
        return None
    frame = begin[start : start + _frame(begin[start : start + 4])]
    most = size.to_bytes(8)[4:]  # there are fewer frames than bytes
    behind = first + start
    if (tag := re.search(rb"(?:Xing|Info)\0\0\0[\x01\x03\x05-\x0f](?!\0{4})", frame[:60])) is not None:
        return _with_head(file, frame[: tag.end()] + most + frame[tag.end() + 4 :], behind + len(frame))
    if re.search(b"Xing|Info|VBRI", frame[:60]):
        behind += len(frame)
    # No checksum, the longest frame. Parts that are read without this header begin up to 0.03 s earlier: behind a Xing
    # header libmpg123 drops the decoder's delay.
    head = frame[:1] + bytes([frame[1] | 1, 0xE0 | frame[2] & 0x0C, frame[3]])
    mono, newest = frame[3] >> 6 == 3, frame[1] >> 3 & 3 == 3
    head += bytes((17 if mono else 32) if newest else (9 if mono else 17)) + b"Xing\0\0\0\x01" + most
    return _with_head(file, head.ljust(_frame(head), b"\0"), behind)


def _next_frame(data: bytes, frames: int) -> int | None:
    """Returns where the next mp3 frame begins that so many frames, itself included, follow each other from."""
    for match in re.finditer(rb"\xff(?=[\xe2\xe3\xf2\xf3\xfa\xfb])", data):
        at, same = match.start(), int.from_bytes(data[match.start() : match.start() + 4]) & SAME
        for _ in range(frames):
            header = data[at : at + 4]
            if not (length := _frame(header)) or int.from_bytes(header) & SAME != same:
                break
            at += length
        else:
            return match.start()
    return None


def _frame(header: bytes) -> int:
    """Returns the bytes of the layer III frame that `header`, 4 bytes, begins; 0 where it begins none."""
    word = int.from_bytes(header[:4])
    version, layer, kbits, rate = word >> 19 & 3, word >> 17 & 3, word >> 12 & 15, word >> 10 & 3
    if word >> 21 != 0x7FF or version == 1 or layer != 1 or kbits in (0, 15) or rate == 3:
        return 0
    newest = version == 3
    return (144_000 if newest else 72_000) * KBITS[newest][kbits] // RATES[version][rate] + (word >> 9 & 1)


def _behind_id3(file: IO[bytes], at: int) -> int:
    """Returns the byte behind ID3v2 tags."""
    while (tag := _read(file, at, 10))[:3] == b"ID3" and len(tag) == 10:
        length = 0
        for byte in tag[6:]:
            length = length << 7 | byte & 0x7F
        at += 10 + length + (10 if tag[5] & 0x10 else 0)
    return at
