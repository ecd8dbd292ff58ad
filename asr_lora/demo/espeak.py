"""espeak-ng through ctypes, in a separate process: JSON utterances to standard input, PCM from output.

The library keeps state between utterances and cannot be reset, so only a new process gives the same samples for the
same list; nor can an abort of the library end the caller. Run as a file, it imports nothing of ours and starts fast.
"""

import ctypes
import json
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TypedDict

RATE = 22_050  # Hz, of every espeak-ng voice
SYNCHRONOUS, DONT_EXIT = 2, 0x8000  # espeak_AUDIO_OUTPUT and an option of espeak_Initialize, from speak_lib.h
WORDS_PER_MINUTE, PITCH = 1, 3  # espeak_PARAMETER
CHARACTERS, UTF8 = 1, 1  # espeak_POSITION_TYPE and a flag of espeak_Synth
Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Utterance(TypedDict):
    text: str
    voice: str  # "nl+f2": a language and a voice variant
    pitch: int  # 0 to 99
    rate: int  # words per minute


class EspeakError(RuntimeError):
    """Raised when the synthesizer's process failed; the message is its last line on standard error."""


def speak(utterances: Sequence[Utterance]) -> list[bytes]:
    """Synthesizes 16-bit mono PCM at RATE for each utterance, a pure function of the list.

    Raises EspeakError.
    """
    # -P: this file's folder stays out of the import path.
    command = [sys.executable, "-P", __file__]
    done = subprocess.run(command, input=json.dumps(list(utterances)).encode(), capture_output=True, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise EspeakError(lines[-1] if lines else f"exit status {done.returncode}")
    return list(_split(done.stdout))


def _split(stream: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(stream):
        (size,) = struct.unpack_from("<I", stream, position)
        position += 4 + size
        yield stream[position - size : position]


def main() -> None:
    # An extra: without it the parent still imports this file, and reports what is missing.
    import espeakng_loader  # noqa: PLC0415

    utterances: list[Utterance] = json.load(sys.stdin)
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    if library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), DONT_EXIT) != RATE:
        sys.exit("espeak_Initialize failed")
    library.espeak_ng_SetRandSeed(ctypes.c_long(0))
    samples = bytearray()

    def collect(wave: "ctypes._Pointer[ctypes.c_short]", count: int, events: int) -> int:
        if wave:
            samples.extend(ctypes.string_at(wave, 2 * count))
        return 0  # go on

    callback = Callback(collect)  # named, so that it outlives the calls into the library
    library.espeak_SetSynthCallback(callback)
    for utterance in utterances:
        samples.clear()
        text = utterance["text"].encode()
        status = (
            library.espeak_SetVoiceByName(utterance["voice"].encode())
            or library.espeak_SetParameter(WORDS_PER_MINUTE, utterance["rate"], 0)
            or library.espeak_SetParameter(PITCH, utterance["pitch"], 0)
            or library.espeak_Synth(text, len(text) + 1, 0, CHARACTERS, 0, UTF8, None, None)
        )
        if status != 0 or not samples:
            sys.exit(f"espeak-ng status {status} for {utterance}")
        sys.stdout.buffer.write(struct.pack("<I", len(samples)) + samples)


if __name__ == "__main__":
    main()
