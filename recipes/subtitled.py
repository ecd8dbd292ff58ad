"""Writes recordings with subtitles whose times are wrong:  python recipes/subtitled.py RUN OUT

The train clips of RUN are joined to recordings of a minute. OUT gets a folder of them for each way in which
recipes/cue_times.py makes times wrong, to be trained on with and without data.refine_cues.
"""

import argparse
from pathlib import Path

import numpy as np
from cue_times import WAYS, ordered

from asr_lora.data import recordings
from asr_lora.data.manifest import read_manifest
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import srt
from asr_lora.runs import folder
from asr_lora.runtime.console import log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("out", type=Path, metavar="OUT")
    asked = parser.parse_args()
    clips = read_manifest(folder.manifest(asked.run, "train"))
    for name, wrong in WAYS.items():
        into = asked.out / name.replace(", ", "-").replace(" ", "-")
        into.mkdir(parents=True)
        made = recordings.build(clips, minutes=1, orders=1, seed=0, folder=into)
        for at, recording in enumerate(made):
            true = np.array([(cue.start, cue.end) for cue in recording.cues])
            times = ordered(wrong(true, np.random.default_rng(at)), recording.duration).tolist()
            cues = [Segment(*pair, cue.text) for pair, cue in zip(times, recording.cues, strict=True)]
            recording.path.with_suffix(".srt").write_text(srt(cues), encoding="utf-8")
        log(f"{into}: {len(made)} recordings of {len(clips)} clips")


if __name__ == "__main__":
    main()
