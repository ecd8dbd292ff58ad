"""Quality checks of a manifest's clips: audio, pace, writing, and duplicates.

An issue does not mean that a clip is wrong. It names a clip to check, and the rule; the strongest come first.
"""

import math
import string
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import regex

from asr_lora.data.manifest import Clip
from asr_lora.speech.audio import SAMPLE_RATE, AudioInfo

# Speech is leveled to -26 dB of full scale where its quality is tested (ITU-T P.56): 20 dB less is quiet. Audio below
# -60 dB is no louder than the noise of an ordinary microphone.
QUIET, SILENT = -46.0, -60.0  # dBFS, root mean square
CLIPPED = 0.001  # of the samples, at full scale
CUT_SECONDS, CUT_SHARE = 0.25, 0.05  # missing from the corpus's duration; mp3 frames and rounding cause less than both
OUTLIER = 3.5  # robust standard deviations
FOREIGN = 0.02  # of the clips: a script in no more of them is foreign to the language
RARE = 0.0005  # of the clips, for a character; a character of one clip is rare in any corpus

SCRIPTS = (
    "Latin Cyrillic Greek Arabic Hebrew Devanagari Bengali Gurmukhi Gujarati Oriya Tamil Telugu Kannada Malayalam "
    "Sinhala Thai Lao Tibetan Myanmar Khmer Georgian Armenian Ethiopic Hangul Han Hiragana Katakana Bopomofo Mongolian "
    "Thaana Tifinagh Ol_Chiki Nko Syriac Cherokee Canadian_Aboriginal Javanese Balinese Cham Vai Adlam"
).split()
ENDLESS = ("Han", "Hangul")  # of so many characters that most are rare
DIGITS = regex.compile(r"\p{Nd}+")
BRACKETS = regex.compile(r"[(\[{（［｛【〔<].{0,40}|[)\]}）］｝】〕>]")
ADDRESSES = regex.compile(r"\w+:/\S*|www\.\S*|[\w.]+@[\w.]+|\w+\.(?:com|org|net|info|edu|gov|html?)\b", regex.I)
SIGNS = regex.compile(r"[\p{S}@#%&*/\\_--[`´^<>]]", regex.V1)  # ` and ´ stand for apostrophes


class Issue(NamedTuple):
    """A clip to check, by its index among the clips, and the finding."""

    at: int
    detail: str


class Kind(NamedTuple):
    title: str
    rule: str


ISSUES = {
    "undecodable": Kind("Cannot be decoded", "the file could be decoded when the manifest was made"),
    "truncated": Kind("Shorter than the corpus states", f"by more than {CUT_SECONDS:g} s and {CUT_SHARE:.0%}"),
    "silent": Kind("Silent", f"loudness below {SILENT:g} dBFS"),
    "quiet": Kind("Quiet", f"loudness below {QUIET:g} dBFS, 20 dB under the level of speech in ITU-T P.56"),
    "clipped": Kind("Clipped", f"{CLIPPED:.1%} of the samples at full scale, or more"),
    "narrow": Kind("Sampled low", f"less than {SAMPLE_RATE:,} Hz: part of the band that Whisper uses is missing"),
    "duplicate_audio": Kind("The same audio twice", "the same bytes; with two sentences, one of them is wrong"),
    "fast": Kind("Too many words for the time", "an outlier of the pace: see the chart"),
    "slow": Kind("Too few words for the time", "an outlier of the pace: see the chart"),
    "wordless": Kind("No word", "nothing is left of the sentence when it is normalized"),
    "script": Kind("Letters of another script", f"of a script that at most {FOREIGN:.0%} of the clips (or one) have"),
    "rare": Kind(
        "Rare characters", f"in at most {RARE:.2%} of the clips (or one); not punctuation of ASCII, Han, Hangul"
    ),
    "digits": Kind("Digits", "the text does not state how they were read"),
    "brackets": Kind("Brackets", "their content is mostly a note, which is not spoken"),
    "addresses": Kind("Addresses", "of the web or of mail"),
    "signs": Kind("Signs", "Unicode's symbols (emoji, currencies) and @ # % & * / \\ _"),
    "repeated": Kind("Repeated sentences", "in more than one clip, as normalized"),
}


@dataclass(frozen=True)
class ScannedClip:
    """A clip of the manifest: its line, its split, its scan, and its normalized sentence."""

    clip: Clip
    split: str
    audio: AudioInfo
    words: str

    @property
    def seconds(self) -> float:
        """The decoded duration; the corpus's where the clip cannot be decoded."""
        return self.audio.seconds or float(self.clip["duration"])


def find_issues(clips: Sequence[ScannedClip], unit: str) -> dict[str, list[Issue]]:
    """Returns all issues by kind, in the order of ISSUES; `unit` of the pace is "words" or "characters"."""
    fast, slow, _ = pace(clips, unit)
    found = _sound(clips) | {"fast": fast, "slow": slow} | _characters(clips) | _writing(clips)
    found |= {"repeated": _repeated(clips), "duplicate_audio": _duplicate_audio(clips)}
    return {kind: found[kind] for kind in ISSUES}


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Returns the bounds beyond which a value is an outlier: the median -+ 3.5 MAD / 0.6745.

    B. Iglewicz and D. Hoaglin, "How to Detect and Handle Outliers", ASQC 1993. Where half of the values are alike the
    MAD is 0, and sqrt(pi / 2) times the mean deviation, the same of a normal distribution, takes its place.
    """
    middle = float(np.median(values))
    off = np.abs(np.asarray(values) - middle)
    spread = float(np.median(off)) / 0.6745 or float(np.mean(off)) * math.sqrt(math.pi / 2)
    return middle - OUTLIER * spread, middle + OUTLIER * spread


def pace(clips: Sequence[ScannedClip], unit: str) -> tuple[list[Issue], list[Issue], dict[str, Any]]:
    """Returns the clips spoken too fast and too slowly, and the facts.

    The facts are `unit`, `median`, `low`, `high` and all `rates`, in units a second. Bounds are of the logarithm: half
    as fast is as odd as twice as fast, and nothing is slower than 0.
    """
    rates = {
        at: (len(each.words.split()) if unit == "words" else len(each.words.replace(" ", ""))) / each.seconds
        for at, each in enumerate(clips)
        if each.words and each.audio.seconds
    }
    if not rates:
        return [], [], {"unit": unit, "median": None, "low": None, "high": None, "rates": []}
    low, high = map(math.exp, bounds([math.log(rate) for rate in rates.values()]))

    def of(order: Iterable[int]) -> list[Issue]:
        return [Issue(at, f"{rates[at]:.1f} {unit}/s") for at in order]

    order = sorted(rates, key=lambda at: rates[at])
    facts = {"unit": unit, "median": float(np.median(list(rates.values()))), "low": low, "high": high}
    # Beyond by 1 in 10^9: a logarithm and back is not exact, and where all are equal none is an outlier.
    fast = of(at for at in reversed(order) if rates[at] > high * (1 + 1e-9))
    return fast, of(at for at in order if rates[at] < low * (1 - 1e-9)), facts | {"rates": list(rates.values())}


def speakers(clips: Sequence[ScannedClip]) -> dict[str, Any]:
    """Returns the number of known `speakers` and the shares of the audio.

    `unknown` counts clips without a speaker, each of which is a speaker of its own; `largest` is the largest share of
    the audio, and `half` how many speakers have half of it. There must be a clip.
    """
    spoken: dict[str, float] = defaultdict(float)
    for each in clips:
        spoken[each.clip["speaker"] or f"\n{each.clip['id']}"] += each.seconds
    unknown = sum(not each.clip["speaker"] for each in clips)
    so_far = np.cumsum(sorted(spoken.values(), reverse=True))
    return {
        "speakers": len(spoken) - unknown,
        "unknown": unknown,
        "largest": float(so_far[0] / so_far[-1]),
        "half": int(np.searchsorted(so_far, so_far[-1] / 2)) + 1,
    }


def decibels(loudness: float) -> float:
    """Returns the dBFS of a root mean square; -inf for silence."""
    return 20 * math.log10(loudness) if loudness > 0 else -math.inf


# ---- kinds ----


def _sound(clips: Sequence[ScannedClip]) -> dict[str, list[Issue]]:
    decoded = [(at, each.audio) for at, each in enumerate(clips) if not each.audio.problem]

    def where(
        strength: Callable[[int, AudioInfo], float | None], detail: Callable[[int, AudioInfo], str]
    ) -> list[Issue]:
        """Returns the issues, the strongest first; `strength` is None for a clip without one."""
        strong = [(found, at, one) for at, one in decoded if (found := strength(at, one)) is not None]
        return [Issue(at, detail(at, one)) for _, at, one in sorted(strong, key=lambda each: (-each[0], each[1]))]

    def listed(at: int) -> float:
        """Returns the corpus's own duration, also where the manifest has the decoded one instead."""
        clip = clips[at].clip
        return float(clip["listed_duration"] if "listed_duration" in clip else clip["duration"])

    def missing(at: int, one: AudioInfo) -> float | None:
        due = listed(at)
        return due - one.seconds if due - one.seconds > max(CUT_SECONDS, CUT_SHARE * due) else None

    def level(at: int, one: AudioInfo) -> str:
        return f"{decibels(one.loudness):.0f} dBFS" if one.loudness else "no sound at all"

    def below(top: float, bottom: float = -math.inf) -> Callable[[int, AudioInfo], float | None]:
        return lambda at, one: -decibels(one.loudness) if bottom <= decibels(one.loudness) < top else None

    return {
        "undecodable": [Issue(at, each.audio.problem) for at, each in enumerate(clips) if each.audio.problem],
        "truncated": where(missing, lambda at, one: f"{one.seconds:.2f} of {listed(at):.2f} s"),
        "silent": where(below(SILENT), level),
        "quiet": where(below(QUIET, SILENT), level),
        "clipped": where(
            lambda at, one: one.clipped if one.clipped >= CLIPPED else None, lambda at, one: f"{one.clipped:.1%}"
        ),
        "narrow": where(
            lambda at, one: -one.rate if one.rate < SAMPLE_RATE else None, lambda at, one: f"{one.rate:,} Hz"
        ),
    }


def _writing(clips: Sequence[ScannedClip]) -> dict[str, list[Issue]]:
    patterns = {"digits": DIGITS, "brackets": BRACKETS, "addresses": ADDRESSES, "signs": SIGNS}
    found: dict[str, list[tuple[int, Issue]]] = {kind: [] for kind in patterns}
    for at, each in enumerate(clips):
        for kind, pattern in patterns.items():
            if seen := pattern.findall(each.clip["text"]):
                found[kind].append((len(seen), Issue(at, " ".join(dict.fromkeys(seen))[:60])))
    ordered = {kind: sorted(own, key=lambda each: (-each[0], each[1].at)) for kind, own in found.items()}
    return {kind: [issue for _, issue in own] for kind, own in ordered.items()} | {
        "wordless": [Issue(at, "no word") for at, each in enumerate(clips) if not each.words.strip()]
    }


def _characters(clips: Sequence[ScannedClip]) -> dict[str, list[Issue]]:
    """Finds letters of a foreign script, and characters that few clips have; the rarest come first."""
    holders: dict[str, list[int]] = defaultdict(list)  # clips by character, in lower case
    by_script: Counter[str] = Counter()
    for at, each in enumerate(clips):
        there = set(unicodedata.normalize("NFC", each.clip["text"]).lower())
        by_script.update({script(char) for char in there} - {""})
        for char in there:
            holders[char].append(at)
    few, rare = (max(1, int(share * len(clips))) for share in (FOREIGN, RARE))
    usual = {name for name, count in by_script.most_common(1) or [("", 0)]}
    foreign = {name for name, count in by_script.items() if count <= few} - usual
    odd = {char: at for char, at in holders.items() if script(char) in foreign}
    seldom = {
        char: at for char, at in holders.items()
        if len(at) <= rare and char not in odd and char not in f"{string.punctuation} "
        and not DIGITS.match(char) and not SIGNS.match(char) and script(char) not in ENDLESS
    }  # fmt: skip
    return {"script": _of_characters(odd), "rare": _of_characters(seldom)}


def _of_characters(holders: dict[str, list[int]]) -> list[Issue]:
    """Returns an issue per clip, which names all such characters in it."""
    by_clip: dict[int, list[str]] = defaultdict(list)
    for char in sorted(holders, key=lambda char: (len(holders[char]), char)):
        for at in holders[char]:
            by_clip[at].append(named(char))
    return [Issue(at, ", ".join(names)) for at, names in by_clip.items()]


def named(char: str) -> str:
    """Names a character: `é (U+00E9, latin small letter e with acute)`; an invisible one without itself."""
    code = f"U+{ord(char):04X}, {unicodedata.name(char, 'no name').lower()}"
    kind = unicodedata.category(char)
    return f"{'◌' if kind[0] == 'M' else ''}{char} ({code})" if kind[0] not in "CZ" else code


@cache
def script(char: str) -> str:
    """Returns the Unicode script of a letter; "" for letters of several scripts and other characters."""
    if not char.isalpha() or regex.match(r"\p{Script=Common}|\p{Script=Inherited}", char):
        return ""
    return next((name for name in SCRIPTS if regex.match(rf"\p{{Script={name}}}", char)), "another")


def _repeated(clips: Sequence[ScannedClip]) -> list[Issue]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(clips):
        if each.words.strip():
            groups[each.words].append(at)

    def detail(own: Sequence[int]) -> str:
        counted = Counter(clips[at].split for at in own)
        return f"in {len(own)} clips ({', '.join(f'{split} {count}' for split, count in counted.items())})"

    return _one_of_each([(own, detail(own)) for own in groups.values() if len(own) > 1])


def _duplicate_audio(clips: Sequence[ScannedClip]) -> list[Issue]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(clips):
        if each.audio.sha256:
            groups[each.audio.sha256].append(at)
    shared = [own for own in groups.values() if len(own) > 1]

    def detail(own: Sequence[int]) -> str:
        sentences = len({clips[at].words for at in own})
        return f"{len(own)} clips" + (f", {sentences} sentences" if sentences > 1 else ", one sentence")

    shared.sort(key=lambda own: len({clips[at].words for at in own}) == 1)  # different sentences come first
    return _one_of_each([(own, detail(own)) for own in shared], by_size=False)


def _one_of_each(groups: Sequence[tuple[list[int], str]], by_size: bool = True) -> list[Issue]:
    """Lists one clip of every group, then the next of every group, so that the first few differ."""
    ordered = sorted(groups, key=lambda group: -len(group[0])) if by_size else groups
    turns = [(turn, rank, at, detail) for rank, (own, detail) in enumerate(ordered) for turn, at in enumerate(own)]
    return [Issue(at, detail) for _, _, at, detail in sorted(turns)]
