"""Annotations in tiers, and which tiers hold the transcript: Praat's TextGrid, long and short, and ELAN's .eaf.

Both are parsed here. praatio drops the sign of a time and refuses 4.9e-05, which Praat writes; pympi never ends where
tiers name each other as parents.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from asr_lora.corpus.segments import Cue, Transcript, join_words
from asr_lora.runtime.errors import ConfigError, listed

# Words in the names of tiers, the usual ones of Praat, MFA, WebMAUS and ELAN.
UTTERANCES = set(
    "utterance utterances utt transcript transcription transcripts sentence sentences text orthography orthographic "
    "ort tx txt trs".split()
)
WORDS = set("word words wrd wd ort-mau".split())
# What divides utterances, or is said of them: no transcript where another tier is there.
OTHERS = WORDS | set(
    "phone phones phoneme phonemes phonetic phon mau kan syllable syllables syll segment segments morph morpheme "
    "morphemes mb gloss glosses ge ps pos lemma translation translations ft note notes comment comments gesture "
    "gestures noise noises event events ref topic tone tones break breaks".split()
)
# A text, a number or a flag that stands free: all that Praat reads; anything else in the file is a comment.
TOKEN = re.compile(r'"([^"]*(?:""[^"]*)*)"|(?<!\S)(-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)(?!\S)')
ALIKE = 0.5  # share of a tier's segments with the times of another's, above which both annotate the same speech


@dataclass
class Tier:
    """A tier: its name, its kind (ELAN's linguistic type), the speaker that it states, and its annotations."""

    name: str
    cues: list[Cue]
    kind: str = ""
    speaker: str = ""
    divides: bool = False  # holds several annotations to one of another tier


def read_textgrid(transcript: Transcript) -> Iterable[Cue]:
    """Returns the intervals of the transcript's tiers. Raises ValueError for what is no TextGrid."""
    tokens = ((found[1], found[2]) for found in TOKEN.finditer(transcript.text))
    try:
        return _chosen(list(_textgrid(tokens)), transcript)
    except StopIteration:
        pass
    raise ValueError("no whole TextGrid (it ends within a tier)")


def _textgrid(tokens: Iterator[tuple[str | None, str | None]]) -> list[Tier]:
    """Parses the tiers of intervals. Raises StopIteration where the tokens end too early."""

    def text() -> str:
        found, number = next(tokens)
        if found is None:
            raise ValueError(f"no TextGrid ({number} where a text should be)")
        return found.replace('""', '"')

    def number() -> str:
        found, value = next(tokens)
        if value is None:
            raise ValueError(f"no TextGrid ({(found or '')[:40]!r} where a number should be)")
        return value

    if not text().startswith("ooTextFile") or text() != "TextGrid":
        raise ValueError("no TextGrid (it does not begin as one)")
    number(), number()
    tiers = []
    for _ in range(_count(number())):
        kind, name = text(), text()
        number(), number()
        tier = Tier(name.strip(), [])
        for at in range(1, _count(number()) + 1):
            if kind == "IntervalTier":
                tier.cues.append(Cue(f"{tier.name} {at}", number(), number(), text()))
            else:
                number(), text()  # a point
        tiers.append(tier)
    return tiers


def _count(number: str) -> int:
    if not number.isdigit():
        raise ValueError(f"no TextGrid ({number} is no count)")
    return int(number[:18])


def read_elan(transcript: Transcript) -> Iterable[Cue]:
    """Returns the annotations of the transcript's tiers. Raises ValueError for what is no ELAN file."""
    if "<!DOCTYPE" in transcript.text or "<!ENTITY" in transcript.text:
        raise ValueError("declares a document type, which ELAN never does")
    try:
        root = ElementTree.fromstring(transcript.text)
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"no XML ({error})") from error
    slots = {each.get("TIME_SLOT_ID", ""): each.get("TIME_VALUE") for each in root.iter("TIME_SLOT")}
    marks = {each.get("ANNOTATION_ID", ""): each for tier in root.iter("TIER") for each in _annotations(tier)}
    tiers = []
    for each in root.iter("TIER"):
        parents = [parent for mark in _annotations(each) if (parent := mark.get("ANNOTATION_REF"))]
        tier = Tier(each.get("TIER_ID", ""), [], each.get("LINGUISTIC_TYPE_REF", ""), each.get("PARTICIPANT", ""))
        tier.divides = len(set(parents)) < len(parents)
        for mark in _annotations(each):
            start, end = _aligned(mark, marks, slots)
            value = mark.findtext("ANNOTATION_VALUE") or ""
            tier.cues.append(Cue(f"{tier.name} {mark.get('ANNOTATION_ID')}", start, end, value, scale=1000))
        tiers.append(tier)
    return _chosen(tiers, transcript)


def _annotations(tier: ElementTree.Element) -> Iterator[ElementTree.Element]:
    return (mark for annotation in tier.iter("ANNOTATION") for mark in annotation)


def _aligned(
    mark: ElementTree.Element, marks: dict[str, ElementTree.Element], slots: dict[str, str | None]
) -> tuple[str, str]:
    """Returns start and end of an annotation, in ms as texts: its own, or those of the one that it refers to."""
    for _ in range(len(marks)):  # references may form a circle
        if (parent := mark.get("ANNOTATION_REF")) not in marks:
            break
        mark = marks[str(parent)]
    start, end = (slots.get(mark.get(f"TIME_SLOT_REF{at}", "")) for at in (1, 2))
    return start or "none", end or "none"


# ---- which tiers hold the transcript ----


def _chosen(tiers: list[Tier], transcript: Transcript) -> Iterator[Cue]:
    """Yields the cues of the tiers of utterances; of words, joined, where there are only these.

    Raises ValueError where no tier has any, ConfigError where several may be meant.
    """
    filled = [tier for tier in tiers if any(str(cue.text).strip() for cue in tier.cues)]
    names = listed(tier.name for tier in filled)
    whole = [tier for tier in filled if not (tier.divides or _words(tier) & OTHERS)]
    if transcript.tier:
        found = [tier for tier in filled if transcript.tier in (tier.name, tier.kind, _label(tier.name))]
        if not found:
            raise ValueError(f"no tier {transcript.tier} with text (its tiers: {names})")
    else:
        usual = [tier for tier in whole if _words(tier) & UTTERANCES]
        found = usual or whole or [tier for tier in filled if _words(tier) & WORDS]
    if not found:
        raise ValueError(f"no tier of utterances or words with text (its tiers: {names})")
    if (alike := _alike(found)) and not transcript.tier:
        raise ConfigError(
            f"data.columns: {transcript.name} has the tiers {names}, and {alike[0].name} and {alike[1].name} may both "
            f"be the transcript; name it: 'data.columns={{text: {_typed(alike[0].name)}}}'"
        )
    for tier in found:
        speaker = tier.speaker or _speaker(tier, alone=len(found) == 1)
        cues = (cue._replace(speaker=speaker) for cue in tier.cues if str(cue.text).strip())
        yield from join_words(cues) if _words(tier) & WORDS else cues


def _words(tier: Tier) -> set[str]:
    return set(re.split(r"[^a-z-]+|(?<![a-z])-|-(?![a-z])", f"{tier.name} {tier.kind}".lower()))


def _label(name: str) -> str:
    """Returns the part of a tier's name beside the speaker: tx of tx@Anna, words of Anna - words."""
    return name.rpartition(" - ")[2] if " - " in name else name.partition("@")[0]


def _speaker(tier: Tier, alone: bool) -> str:
    """Returns the speaker in a tier's name; the name itself where several tiers are one speaker each."""
    if " - " in tier.name:
        return tier.name.rpartition(" - ")[0]
    return tier.name.partition("@")[2] or ("" if alone else tier.name)


def _alike(tiers: list[Tier]) -> tuple[Tier, Tier] | None:
    """Returns two tiers that annotate the same speech, by their times."""
    times = [{(cue.start, cue.end) for cue in tier.cues if str(cue.text).strip()} for tier in tiers]
    for at, one in enumerate(times):
        for after, other in enumerate(times[at + 1 :], start=at + 1):
            if len(one & other) > ALIKE * min(len(one), len(other)):
                return tiers[at], tiers[after]
    return None


def _typed(name: str) -> str:
    return name if re.fullmatch(r"\w+", name) else "'{}'".format(name.replace("'", "\\'"))
