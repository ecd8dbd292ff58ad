"""Measures memory while decoding many clips:  python recipes/memory.py MANIFEST --checkpoint FOLDER [--clips 5000]

Decodes the clips of a manifest (runs/<run>/data/test.jsonl) repeatedly, up to --clips, as evaluation does, and logs the
memory of the process. The slope is that of a straight line through all but the first tenth, which has the batches of
the longest clips.
"""

import argparse
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from asr_lora.decoding.generate import DecodingOptions, decode_once
from asr_lora.model import whisper
from asr_lora.model.pretrained import load_processor
from asr_lora.runs.launch import resident_bytes
from asr_lora.runtime.console import log, progress, quiet_libraries
from asr_lora.runtime.files import read_jsonl


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--checkpoint", default="openai/whisper-base", help="(%(default)s)")
    parser.add_argument("--language", default="es", help="Whisper's token (%(default)s)")
    parser.add_argument("--clips", type=int, default=5000, help="(%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of a clip at most (%(default)s)")
    asked = parser.parse_args(arguments)
    quiet_libraries()
    model, processor = whisper.load(asked.checkpoint, "fp32", torch.device("cpu")), load_processor(asked.checkpoint)
    clips = list(islice(cycle(read_jsonl(asked.manifest)), asked.clips))
    done, held = [0], [resident_bytes()]
    with progress("decoding", total=len(clips)) as bar:

        def advance(count: int) -> None:
            bar.advance(count)
            done.append(done[-1] + count)
            held.append(resident_bytes())

        decode_once(
            model, processor, clips, DecodingOptions(asked.language, "transcribe", 1, asked.tokens, 40, 1.0, 8), advance
        )
    steady = [at for at, count in enumerate(done) if count >= len(clips) / 10]
    slope = np.polyfit([done[at] for at in steady], [held[at] for at in steady], 1)[0]
    at_tenths = [held[int(share * (len(held) - 1))] for share in np.linspace(0, 1, 11)]
    log(f"MB held, before and after every tenth: {', '.join(f'{each / 1e6:.0f}' for each in at_tenths)}")
    log(f"slope: {slope * 1000 / 1e6:+.2f} MB per 1,000 clips")


if __name__ == "__main__":
    main()
