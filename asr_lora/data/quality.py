"""What is odd about the clips of a manifest: their sound, their pace, their writing, and what is there twice.

Nothing here says that a clip is wrong. It says where to look, and by which rule; what is strongest comes first.
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

# Speech is levelled to -26 dB of full scale where its quality is tested (ITU-T P.56): 20 dB less is quiet. What is
# below -60 is no louder than the hiss of an ordinary microphone.
QUIET, SILENT = -46.0, -60.0  # dBFS, root mean square
CLIPPED = 0.001  # of the samples, at full scale
CUT_SECONDS, CUT_SHARE = 0.25, 0.05  # missing of the corpus's duration; mp3 frames and rounding make less of both
OUTLIER = 3.5  # robust standard deviations
FOREIGN = 0.02  # of the clips: a script in no more of them is not the language's own
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
    """A clip to look at, by its place among the clips, and what is odd."""

    at: int
    said: str


class Kind(NamedTuple):
    title: str
    rule: str


ISSUES = {
    "unheard": Kind("Cannot be heard", "the file cannot be decoded any more"),
    "truncated": Kind("Shorter than the corpus says", f"by more than {CUT_SECONDS:g} s and {CUT_SHARE:.0%}"),
    "silent": Kind("Silent", f"loudness below {SILENT:g} dBFS"),
    "quiet": Kind("Quiet", f"loudness below {QUIET:g} dBFS, 20 dB under the level of speech in ITU-T P.56"),
    "clipped": Kind("Clipped", f"{CLIPPED:.1%} of the samples at full scale, or more"),
    "narrow": Kind("Sampled low", f"less than {SAMPLE_RATE:,} Hz: half of what Whisper hears is not there"),
    "twins": Kind("The same sound twice", "the same bytes; with two sentences, one of them is wrong"),
    "fast": Kind("Too many words for the time", "an outlier of the pace: see the chart"),
    "slow": Kind("Too few words for the time", "an outlier of the pace: see the chart"),
    "wordless": Kind("No word", "nothing is left of the sentence when it is normalised"),
    "script": Kind("Letters of another script", f"of a script that at most {FOREIGN:.0%} of the clips (or one) have"),
    "rare": Kind(
        "Rare characters", f"in at most {RARE:.2%} of the clips (or one); not punctuation of ASCII, Han, Hangul"
    ),
    "digits": Kind("Digits", "nothing says how they were read"),
    "brackets": Kind("Brackets", "what they hold is mostly a note, which nobody says"),
    "addresses": Kind("Addresses", "of the web or of mail"),
    "signs": Kind("Signs", "Unicode's symbols (emoji, currencies) and @ # % & * / \\ _"),
    "repeated": Kind("Repeated sentences", "said in more than one clip, as normalised"),
}


@dataclass(frozen=True)
class Utterance:
    """A clip of the manifest as it is judged: its line, its split, what was heard, and its sentence normalised."""

    clip: Clip
    split: str
    heard: AudioInfo
    words: str

    @property
    def seconds(self) -> float:
        """What is there; where nothing could be heard, what the corpus says."""
        return self.heard.seconds or float(self.clip["duration"])


def find_issues(utterances: Sequence[Utterance], unit: str) -> dict[str, list[Issue]]:
    """All faults by kind, in the order of KINDS; `unit` is what the pace counts, "words" or "characters"."""
    fast, slow, _ = pace(utterances, unit)
    found = _sound(utterances) | {"fast": fast, "slow": slow} | _characters(utterances) | _writing(utterances)
    found |= {"repeated": _repeated(utterances), "twins": _twins(utterances)}
    return {kind: found[kind] for kind in ISSUES}


def bounds(values: Sequence[float]) -> tuple[float, float]:
    """Beyond which a value is an outlier: the median -+ 3.5 MAD / 0.6745.

    B. Iglewicz and D. Hoaglin, "How to Detect and Handle Outliers", ASQC 1993. Where half of the values are alike the
    MAD is 0, and sqrt(pi / 2) times the mean deviation, the same of a normal distribution, takes its place.
    """
    middle = float(np.median(values))
    off = np.abs(np.asarray(values) - middle)
    spread = float(np.median(off)) / 0.6745 or float(np.mean(off)) * math.sqrt(math.pi / 2)
    return middle - OUTLIER * spread, middle + OUTLIER * spread


def pace(utterances: Sequence[Utterance], unit: str) -> tuple[list[Issue], list[Issue], dict[str, Any]]:
    """The clips that are said too fast and too slowly, and the facts: `median`, `low` and `high`, in units a second.

    Bounds are of the logarithm: half as fast is as odd as twice as fast, and nothing is slower than 0.
    """
    rates = {
        at: (len(each.words.split()) if unit == "words" else len(each.words.replace(" ", ""))) / each.seconds
        for at, each in enumerate(utterances)
        if each.words and each.heard.seconds
    }
    if not rates:
        return [], [], {"unit": unit, "median": None, "low": None, "high": None, "rates": []}
    low, high = map(math.exp, bounds([math.log(rate) for rate in rates.values()]))

    def of(order: Iterable[int]) -> list[Issue]:
        return [Issue(at, f"{rates[at]:.1f} {unit}/s") for at in order]

    order = sorted(rates, key=lambda at: rates[at])
    facts = {"unit": unit, "median": float(np.median(list(rates.values()))), "low": low, "high": high}
    # By 1 in 10^9 beyond: a logarithm and back is not exact, and where all are alike none is odd.
    fast = of(at for at in reversed(order) if rates[at] > high * (1 + 1e-9))
    return fast, of(at for at in order if rates[at] < low * (1 - 1e-9)), facts | {"rates": list(rates.values())}


def speakers(utterances: Sequence[Utterance]) -> dict[str, Any]:
    """`speakers` known, `unknown` clips of nobody, the `largest` share of the audio, and how many make `half` of it.

    A clip of an unknown speaker is of nobody else. There must be a clip.
    """
    spoken: dict[str, float] = defaultdict(float)
    for each in utterances:
        spoken[each.clip["speaker"] or f"\n{each.clip['id']}"] += each.seconds
    unknown = sum(not each.clip["speaker"] for each in utterances)
    so_far = np.cumsum(sorted(spoken.values(), reverse=True))
    return {
        "speakers": len(spoken) - unknown,
        "unknown": unknown,
        "largest": float(so_far[0] / so_far[-1]),
        "half": int(np.searchsorted(so_far, so_far[-1] / 2)) + 1,
    }


def decibels(loudness: float) -> float:
    """dBFS of a root mean square; silence is -inf."""
    return 20 * math.log10(loudness) if loudness > 0 else -math.inf


# ---- kinds ----


def _sound(utterances: Sequence[Utterance]) -> dict[str, list[Issue]]:
    heard = [(at, each.heard) for at, each in enumerate(utterances) if not each.heard.problem]

    def where(strength: Callable[[int, AudioInfo], float | None], said: Callable[[int, AudioInfo], str]) -> list[Issue]:
        """`strength` is None where there is no fault."""
        strong = [(found, at, one) for at, one in heard if (found := strength(at, one)) is not None]
        return [Issue(at, said(at, one)) for _, at, one in sorted(strong, key=lambda each: (-each[0], each[1]))]

    def told(at: int) -> float:
        """The corpus's own duration, where the manifest has taken what was heard instead."""
        clip = utterances[at].clip
        return float(clip["listed_duration"] if "listed_duration" in clip else clip["duration"])

    def missing(at: int, one: AudioInfo) -> float | None:
        due = told(at)
        return due - one.seconds if due - one.seconds > max(CUT_SECONDS, CUT_SHARE * due) else None

    def level(at: int, one: AudioInfo) -> str:
        return f"{decibels(one.loudness):.0f} dBFS" if one.loudness else "no sound at all"

    def below(top: float, bottom: float = -math.inf) -> Callable[[int, AudioInfo], float | None]:
        return lambda at, one: -decibels(one.loudness) if bottom <= decibels(one.loudness) < top else None

    return {
        "unheard": [Issue(at, each.heard.problem) for at, each in enumerate(utterances) if each.heard.problem],
        "truncated": where(missing, lambda at, one: f"{one.seconds:.2f} of {told(at):.2f} s"),
        "silent": where(below(SILENT), level),
        "quiet": where(below(QUIET, SILENT), level),
        "clipped": where(
            lambda at, one: one.clipped if one.clipped >= CLIPPED else None, lambda at, one: f"{one.clipped:.1%}"
        ),
        "narrow": where(
            lambda at, one: -one.rate if one.rate < SAMPLE_RATE else None, lambda at, one: f"{one.rate:,} Hz"
        ),
    }


def _writing(utterances: Sequence[Utterance]) -> dict[str, list[Issue]]:
    patterns = {"digits": DIGITS, "brackets": BRACKETS, "addresses": ADDRESSES, "signs": SIGNS}
    found: dict[str, list[tuple[int, Issue]]] = {kind: [] for kind in patterns}
    for at, each in enumerate(utterances):
        for kind, pattern in patterns.items():
            if seen := pattern.findall(each.clip["text"]):
                found[kind].append((len(seen), Issue(at, " ".join(dict.fromkeys(seen))[:60])))
    ordered = {kind: sorted(own, key=lambda each: (-each[0], each[1].at)) for kind, own in found.items()}
    return {kind: [fault for _, fault in own] for kind, own in ordered.items()} | {
        "wordless": [Issue(at, "no word") for at, each in enumerate(utterances) if not each.words.strip()]
    }


def _characters(utterances: Sequence[Utterance]) -> dict[str, list[Issue]]:
    """Letters of a script that is not the language's, and characters that few clips have; the rarest first."""
    holders: dict[str, list[int]] = defaultdict(list)  # of every character, in small letters
    by_script: Counter[str] = Counter()
    for at, each in enumerate(utterances):
        there = set(unicodedata.normalize("NFC", each.clip["text"]).lower())
        by_script.update({script(char) for char in there} - {""})
        for char in there:
            holders[char].append(at)
    few, rare = (max(1, int(share * len(utterances))) for share in (FOREIGN, RARE))
    usual = {name for name, clips in by_script.most_common(1) or [("", 0)]}
    foreign = {name for name, clips in by_script.items() if clips <= few} - usual
    odd = {char: at for char, at in holders.items() if script(char) in foreign}
    seldom = {
        char: at for char, at in holders.items()
        if len(at) <= rare and char not in odd and char not in f"{string.punctuation} "
        and not DIGITS.match(char) and not SIGNS.match(char) and script(char) not in ENDLESS
    }  # fmt: skip
    return {"script": _of_characters(odd), "rare": _of_characters(seldom)}


def _of_characters(holders: dict[str, list[int]]) -> list[Issue]:
    """A fault a clip, which names all such characters in it."""
    by_clip: dict[int, list[str]] = defaultdict(list)
    for char in sorted(holders, key=lambda char: (len(holders[char]), char)):
        for at in holders[char]:
            by_clip[at].append(named(char))
    return [Issue(at, ", ".join(names)) for at, names in by_clip.items()]


def named(char: str) -> str:
    """`é (U+00E9, latin small letter e with acute)`; what cannot be seen by its name alone."""
    code = f"U+{ord(char):04X}, {unicodedata.name(char, 'no name').lower()}"
    kind = unicodedata.category(char)
    return f"{'◌' if kind[0] == 'M' else ''}{char} ({code})" if kind[0] not in "CZ" else code


@cache
def script(char: str) -> str:
    """Of a letter, by Unicode; "" of anything else, and of letters that several scripts share."""
    if not char.isalpha() or regex.match(r"\p{Script=Common}|\p{Script=Inherited}", char):
        return ""
    return next((name for name in SCRIPTS if regex.match(rf"\p{{Script={name}}}", char)), "another")


def _repeated(utterances: Sequence[Utterance]) -> list[Issue]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(utterances):
        if each.words.strip():
            groups[each.words].append(at)

    def said(own: Sequence[int]) -> str:
        counted = Counter(utterances[at].split for at in own)
        return f"in {len(own)} clips ({', '.join(f'{split} {clips}' for split, clips in counted.items())})"

    return _one_of_each([(own, said(own)) for own in groups.values() if len(own) > 1])


def _twins(utterances: Sequence[Utterance]) -> list[Issue]:
    groups: dict[str, list[int]] = defaultdict(list)
    for at, each in enumerate(utterances):
        if each.heard.sha256:
            groups[each.heard.sha256].append(at)
    shared = [own for own in groups.values() if len(own) > 1]

    def said(own: Sequence[int]) -> str:
        sentences = len({utterances[at].words for at in own})
        return f"{len(own)} clips" + (f", {sentences} sentences" if sentences > 1 else ", one sentence")

    shared.sort(key=lambda own: len({utterances[at].words for at in own}) == 1)  # those that contradict come first
    return _one_of_each([(own, said(own)) for own in shared], by_size=False)


def _one_of_each(groups: Sequence[tuple[list[int], str]], by_size: bool = True) -> list[Issue]:
    """One clip of every group, then the next of every group: the first few then are not all the same."""
    ordered = sorted(groups, key=lambda group: -len(group[0])) if by_size else groups
    turns = [(turn, place, at, said) for place, (own, said) in enumerate(ordered) for turn, at in enumerate(own)]
    return [Issue(at, said) for _, _, at, said in sorted(turns)]
