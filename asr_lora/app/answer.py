"""What was heard as a piece of the page, with what differs marked word by word; and as files to take along."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asr_lora.app.models import Heard
from asr_lora.config.stages import EvalConfig
from asr_lora.decoding.generate import Segment
from asr_lora.decoding.transcriber import FORMATS
from asr_lora.evaluation import error_analysis as findings
from asr_lora.evaluation import metrics
from asr_lora.evaluation.error_analysis import Chunk
from asr_lora.reporting.pages import environment
from asr_lora.runtime.files import write_text
from asr_lora.speech.normalizer import Normalizer, in_units, leading


def shown(heard: Heard, scoring: EvalConfig, reference: str | None) -> str:
    """HTML: both texts with the words in which they differ; with a `reference` each against that, and its error rate.

    Raises ChoiceError where `scoring` asks for numbers as words in a language whose numbers cannot be read.
    """
    normalizer = Normalizer(scoring.normalizer, heard.language, scoring.numbers)
    said = {"untouched": joined(heard.untouched), "tuned": joined(heard.tuned)}
    return environment(autoescape=True).get_template("app_result.html").render(
        heard=heard, chunks=differences(said["untouched"], said["tuned"], normalizer), normalizer=normalizer,
        cut={name: sum(each.cut for each in getattr(heard, name)) for name in said},
        scored=None if reference is None else scored(reference, said, normalizer), rate=leading(heard.language),
    )  # fmt: skip


def joined(segments: Sequence[Segment]) -> str:
    return " ".join(segment.text for segment in segments)


def differences(untouched: str, tuned: str, normalizer: Normalizer) -> list[Chunk]:
    """The two aligned word by word, as they were written; what normalising makes alike (capitals, commas) is equal."""
    words = [in_units(text, normalizer.language).split() for text in (untouched, tuned)]
    # A key a word, so that what is aligned has the places of what is shown: a lone dash is its own.
    keys = [" ".join("".join(normalizer(word).split()) or word for word in side) for side in words]
    (aligned,), at, made = findings.alignments(keys[:1], keys[1:]), [0, 0], []
    for chunk in aligned:
        sides = [words[i][at[i] : at[i] + len(part)] for i, part in enumerate((chunk.reference, chunk.hypothesis))]
        at = [at[0] + len(sides[0]), at[1] + len(sides[1])]
        made.append(Chunk(chunk.kind, *sides))
    return made


def scored(reference: str, said: dict[str, str], normalizer: Normalizer) -> dict[str, Any]:
    """The reference as it is compared, and each model against it: chunks, errors, units of the reference and the rate.

    Without a word in the reference `units` is 0 and the rate None.
    """
    clean = {name: normalizer(text) for name, text in {"reference": reference, **said}.items()}
    units = {name: in_units(text, normalizer.language) for name, text in clean.items()}
    found: dict[str, Any] = {"reference": clean["reference"]}
    for name in said:
        (errors,), (of,) = metrics.clip_errors([clean["reference"]], [clean[name]], str(normalizer.language))
        (chunks,) = findings.alignments([units["reference"]], [units[name]])
        found[name] = {"chunks": chunks, "errors": errors, "units": of, "rate": errors / of if of else None}
    return found


def files(segments: Sequence[Segment], name: str, folder: Path) -> list[Path]:
    """The text and the subtitles, written into `folder` as `name`.txt and .srt."""
    made = [folder / f"{name}.{suffix}" for suffix in ("txt", "srt")]
    for file in made:
        write_text(file, FORMATS[file.suffix.removeprefix(".")](segments))
    return made
