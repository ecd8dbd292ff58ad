"""How much a text repeats itself, as OpenAI's Whisper measures it; without torch, for metrics."""

import zlib

COMPRESSION_RATIO = 2.4  # text that zlib shortens more repeats itself


def compression_ratio(text: str) -> float:
    """Returns the bytes of a text over those that zlib needs; about 1 for a sentence, 0 for none."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
