"""A page of what is odd about the clips of a run:  python -m asr_lora.prepare ... prepare.audit=true [prepare.audit_decode=500]

Leaves audit/index.html in the run folder, which needs no network, beside it the clips that it plays; audit/audit.json,
the same as numbers and ids; and audit/suspects.txt, the ids that data.exclude_ids takes once a person has looked. The sound
was heard when the clips were drawn, and is remembered.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from asr_lora.config.compose import quote_override
from asr_lora.config.schema import DataConfig
from asr_lora.corpus import SPLITS
from asr_lora.data import quality as faults
from asr_lora.data.manifest import audio_suffix, encoded_audio, read_manifest
from asr_lora.data.quality import ISSUES, OUTLIER, Issue, ScannedClip, bounds
from asr_lora.evaluation.error_analysis import alignments, runaway_signs
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.evaluation.metrics import clip_errors
from asr_lora.reporting import charts
from asr_lora.reporting.pages import environment
from asr_lora.runs import folder
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, read_json, write_json, write_text
from asr_lora.speech.audio import AudioScanner, AudioSegment
from asr_lora.speech.normalizer import Normalizer, primary_metric

SHOWN = 6  # clips of every kind, with their sound
SHOWN_DOUBTS = 20  # of the transcripts that the model contradicts
ALWAYS = ("undecodable", "truncated", "silent")  # kinds that are suspect whatever a model hears
LEAST = 0.5  # of the characters: below it, it is spelling and accents as often as other words
# Characters: with one word to go by a model errs by itself. Of eleven transcripts of real Spanish that whisper-base
# contradicted by half, nine were shorter: single numbers and spelt letters, misheard.
SHORT = {"words": 12, "characters": 4}
SIGNS = {
    "compression": "repeats itself", "loop": "the same words over and over", "rate": "more words than can be said",
    "limit": "was cut while talking", "silence": "text without a transcript",
}  # fmt: skip
MANY = 5  # clips in which the model writes something before its absence from the transcripts is worth a word
LACKING = 0.2  # times as many clips of the corpus
MOST_LACKING = 20


@dataclass(frozen=True)
class LabelIssue:
    """A transcript and what a model heard in its place, both normalised; `at` is the clip's place among all."""

    at: int
    hypothesis: str
    reference: str
    heard: str
    errors: int  # characters
    characters: int  # of the reference; 0: it has no word
    short: bool  # too short for the model to be believed
    signs: Sequence[str]  # of a hypothesis that ran away

    @property
    def rate(self) -> float:
        """The character error rate; where the transcript has no word nothing can be said, and it is 0."""
        return self.errors / self.characters if self.characters else 0.0


def audit(
    run: Path, data: DataConfig, token: str, normalizer: str,
    decode: Callable[[Sequence[EvalSet]], Sequence[Mapping[str, Any]]] | None = None, most: int = 0,
) -> Path:  # fmt: skip
    """Writes the page of a run whose manifest is there, and returns where it is.

    `token` is Whisper's language. `decode` gives the base model's hypotheses of sets, as `decode_sets` does: of the
    first `most` training clips and all of dev and test; without it no model is asked.
    """
    summary = read_json(folder.summary(run))
    normal, unit = _normalizer(normalizer, token), "characters" if primary_metric(token) == "cer" else "words"
    utterances = _utterances(run, summary["source"], normal)
    odd = faults.find_issues(utterances, unit)
    contradicted = _contradicted(decode, most, utterances, token, normal, unit) if decode else []
    limit = suspect_threshold(contradicted)
    facts = _facts(utterances, odd, unit) | {
        "normalizer": str(normal), "decoded": _decoded(utterances, contradicted, limit),
        **_suspects(utterances, odd, contradicted, limit),
    }  # fmt: skip
    made = run / "audit"
    edited = _edited(made)
    with atomic_folder(made) as partial:
        clips = partial / "clips"
        clips.mkdir()
        text = environment(autoescape=True).get_template("audit.html").render(
            name=run.name, summary=summary, facts=facts, kinds=ISSUES, drop=data.exclude_ids,
            rule=suspect_rule(unit), apply=_apply(data, made),
            charts=_charts(utterances, unit, contradicted, limit),
            shown={kind: [_example(utterances[at], said, clips) for at, said in own[:SHOWN]]
                   for kind, own in odd.items()},
            doubted=_shown_doubts(utterances, contradicted, limit, token, clips),
        )  # fmt: skip
        write_text(partial / "index.html", text)
        write_json(partial / "audit.json", facts)
        _write_suspects(partial, facts["suspects"], edited)
    if edited is not None:
        log(f"{made / 'suspects.txt'} was changed by hand and stays; today's list is suspects-new.txt beside it")
    then = f"; listen to them, then {_apply(data, made)}" if facts["suspects"] else ""
    log(f"suspects: {len(facts['suspects'])} of {len(utterances)} clips{then}")
    log(f"page: {made / 'index.html'}")
    return made / "index.html"


def _normalizer(name: str, token: str) -> Normalizer:
    """The run's own, with digits read as words where that can be done: 7 for seven is no wrong transcript."""
    try:
        return Normalizer(name, token, numbers=True)
    except ConfigError:  # num2words does not know the language
        return Normalizer(name, token)


def _utterances(run: Path, source: str, normal: Normalizer) -> list[ScannedClip]:
    """All clips of the manifest, in its order, with what was heard in them; what the cache remembers is not heard."""
    lines = [(split, clip) for split in SPLITS for clip in read_manifest(folder.manifest(run, split))]
    if in_shards := [clip for _, clip in lines if "offset" in clip]:
        raise ConfigError(
            f"audit: {len(in_shards)} clips of {run} lie in shards; audit the run that they were written from"
        )
    places = [AudioSegment(Path(clip["path"]), clip.get("start"), clip.get("end")) for _, clip in lines]
    found = []
    with AudioScanner(source) as scanner, progress("looking at clips", total=len(lines)) as bar:
        for (split, clip), each in zip(lines, scanner.scan(places), strict=True):
            found.append(ScannedClip(clip, split, each, normal(clip["text"])))
            bar.advance()
    return found


def _contradicted(
    decode: Callable[[Sequence[EvalSet]], Sequence[Mapping[str, Any]]], most: int, utterances: Sequence[ScannedClip],
    token: str, normal: Normalizer, unit: str,
) -> list[LabelIssue]:  # fmt: skip
    places: dict[str, list[int]] = {split: [] for split in SPLITS}
    for at, each in enumerate(utterances):
        if not each.audio.problem:
            places[each.split].append(at)
    places["train"] = places["train"][:most]
    sets = [
        EvalSet(split, split, token, [utterances[at].clip for at in own], len(own))
        for split, own in places.items()
        if own
    ]
    models = decode(sets)
    return [
        doubt
        for each, model in zip(sets, models, strict=True)
        for doubt in label_issues(places[each.name], utterances, model, normal, unit)
    ]


def _suspects(
    utterances: Sequence[ScannedClip],
    odd: Mapping[str, Sequence[Issue]],
    contradicted: Sequence[LabelIssue],
    limit: float,
) -> dict[str, Any]:
    """`suspects`, the ids that data.exclude_ids would take, in the manifest's order; and how many of each split."""
    sure = {fault.at for kind in ALWAYS for fault in odd[kind]}
    places = sorted(sure | {doubt.at for doubt in contradicted if is_suspect(doubt, limit)})
    ids = [utterances[at].clip["id"] for at in places]
    return {"suspects": ids, "suspects_by_split": _by_split(utterances, places)}


def _edited(folder: Path) -> str | None:
    """The list as a person left it, where it is no longer what was written here; None otherwise."""
    listed, facts = folder / "suspects.txt", folder / "audit.json"
    if not listed.is_file():
        return None
    there = listed.read_text(encoding="utf-8")
    return None if facts.is_file() and there == _listing(read_json(facts)["suspects"]) else there


def _write_suspects(folder: Path, suspects: Sequence[str], edited: str | None) -> None:
    write_text(folder / "suspects.txt", _listing(suspects) if edited is None else edited)
    if edited is not None:
        write_text(folder / "suspects-new.txt", _listing(suspects))


def _listing(suspects: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in suspects)


def _apply(data: DataConfig, folder: Path) -> str:
    """The words that leave the listed clips out."""
    listed = str(folder / "suspects.txt")
    if re.fullmatch(r"[\w./+-]+", listed, re.ASCII):
        hours = "all" if data.hours is None else f"{data.hours:g}"
        return f"make train LANG={data.language} HOURS={hours} ... ARGS='data.exclude_ids={listed}'"
    return f"python -m asr_lora.train ... {shlex.quote(f'data.exclude_ids={quote_override(listed)}')}"


def _facts(utterances: Sequence[ScannedClip], odd: Mapping[str, Sequence[Issue]], unit: str) -> dict[str, Any]:
    """What audit.json holds but for the model's part and the list."""
    pace = {name: value for name, value in faults.pace(utterances, unit)[2].items() if name != "rates"}
    return {
        "splits": {split: _split([each for each in utterances if each.split == split]) for split in SPLITS},
        "pace": pace,
        "odd": {
            kind: {
                "clips": len(own),
                "by_split": _by_split(utterances, [fault.at for fault in own]),
                "found": {utterances[fault.at].clip["id"]: fault.detail for fault in own},
            }
            for kind, own in odd.items()
        },
        "odd_clips": len({fault.at for own in odd.values() for fault in own}),
    }


def _split(own: Sequence[ScannedClip]) -> dict[str, Any]:
    seconds = [each.seconds for each in own]
    loud = [faults.decibels(each.audio.loudness) for each in own if each.audio.loudness]
    return {
        "clips": len(own),
        "hours": round(sum(seconds) / 3600, 4),
        **faults.speakers(own),
        "seconds": {"least": min(seconds), "median": float(np.median(seconds)), "most": max(seconds)},
        "loudness_dbfs": round(float(np.median(loud)), 1) if loud else None,
        "sampling_rates": dict(sorted(Counter(each.audio.rate for each in own if each.audio.rate).items())),
    }


def _by_split(utterances: Sequence[ScannedClip], places: Sequence[int]) -> dict[str, int]:
    counted = Counter(utterances[at].split for at in places)
    return {split: counted[split] for split in SPLITS}


def _decoded(
    utterances: Sequence[ScannedClip], contradicted: Sequence[LabelIssue], limit: float
) -> dict[str, Any] | None:
    if not contradicted:
        return None
    rates, ranked = trusted_rates(contradicted), rank_issues(contradicted)
    return {
        "clips": _by_split(utterances, [each.at for each in contradicted]),
        "median_cer": float(np.median(rates)) if rates else None,
        "threshold": limit,
        "suspect": {utterances[each.at].clip["id"]: each.rate for each in contradicted if is_suspect(each, limit)},
        "short": {utterances[each.at].clip["id"]: each.rate for each in ranked["short"] if each.rate > limit},
        "ran_away": {utterances[each.at].clip["id"]: list(each.signs) for each in ranked["ran_away"]},
        "lacking": missing_symbols(contradicted),
    }  # fmt: skip


def _charts(
    utterances: Sequence[ScannedClip], unit: str, contradicted: Sequence[LabelIssue], limit: float
) -> dict[str, Any]:
    """`durations`: titles and SVGs; `pace` and the model's `error`: SVGs, None where there is nothing to draw."""
    pace = faults.pace(utterances, unit)[2]
    durations = {split: [each.seconds for each in utterances if each.split == split] for split in SPLITS}
    drawn = [(split, charts.histogram(own, "seconds")) for split, own in durations.items()]
    outside, rates = [pace["low"], pace["high"]], trusted_rates(contradicted)
    return {
        "durations": [(title, Markup(svg)) for title, svg in drawn],
        "pace": Markup(charts.histogram(pace["rates"], f"{unit} a second", outside)) if pace["rates"] else None,
        "error": Markup(charts.shares(rates, "character error rate", [limit])) if rates else None,
    }


def _example(each: ScannedClip, said: str, clips: Path) -> dict[str, Any]:
    return {
        "id": each.clip["id"], "split": each.split, "seconds": each.seconds, "said": said,
        "text": each.clip["text"], "suspect": False, "sound": _sound(each, clips),
    }  # fmt: skip


def _shown_doubts(
    utterances: Sequence[ScannedClip], contradicted: Sequence[LabelIssue], limit: float, token: str, clips: Path
) -> dict[str, list[dict[str, Any]]]:
    """As doubts.ranked has them, each a clip with its alignment; where no spaces are written, by characters."""
    by_character = Normalizer("characters", token) if primary_metric(token) == "cer" else str

    def shown(each: LabelIssue) -> dict[str, Any]:
        (chunks,) = alignments([by_character(each.reference)], [by_character(each.heard)])
        rate = f"{each.rate:.0%}: {each.errors} of {each.characters} characters"
        said = ", ".join(SIGNS[sign] for sign in each.signs) or rate
        drawn = {"suspect": is_suspect(each, limit), "chunks": chunks}
        return _example(utterances[each.at], said, clips) | drawn

    most = {"worst": SHOWN_DOUBTS}
    return {
        name: [shown(each) for each in own[: most.get(name, SHOWN)]] for name, own in rank_issues(contradicted).items()
    }


def _sound(each: ScannedClip, clips: Path) -> str | None:
    """The clip beside the page; of a long recording the part alone. None where it cannot be heard."""
    if each.audio.problem:
        return None
    target = clips / f"{each.audio.sha256[:20]}.{audio_suffix(each.clip)}"
    if not target.is_file():
        try:
            target.write_bytes(encoded_audio(each.clip))
        except ExternalError as error:
            log(f"{each.clip['id']} cannot be played on the page: {error}")
            return None
    return f"clips/{target.name}"


def label_issues(
    places: Sequence[int], utterances: Sequence[ScannedClip], model: Mapping[str, Any], normal: Normalizer, unit: str
) -> list[LabelIssue]:
    """A doubt a clip of `places`, in which `model` (an item of hearing.heard) heard its hypotheses, in their order.

    `unit` is what the language is written in, "words" or "characters".
    """
    references = [utterances[at].words for at in places]
    heard = [normal(text) for text in model["hypotheses"]]
    errors, characters = clip_errors(references, heard, normal.language or "", "cer")
    return [
        LabelIssue(
            at, hypothesis, reference, said, wrong, count, count < SHORT[unit],
            runaway_signs(said, reference, float(utterances[at].clip["duration"]), cut),
        )
        for at, hypothesis, reference, said, wrong, count, cut in zip(
            places, model["hypotheses"], references, heard, errors, characters, model["truncated"], strict=True
        )
    ]  # fmt: skip


def trusted_rates(found: Sequence[LabelIssue]) -> list[float]:
    """The character error rates that tell of the model and the corpus: of what it can be believed in."""
    return [each.rate for each in found if not each.short and not each.signs]


def suspect_threshold(found: Sequence[LabelIssue]) -> float:
    """The character error rate beyond which a transcript is suspect; a model that is wrong everywhere suspects few."""
    believed = trusted_rates(found)
    return max(LEAST, bounds(believed)[1]) if believed else LEAST


def suspect_rule(unit: str) -> str:
    return (
        f"more than {LEAST:.0%} of the characters, and more than the median by {OUTLIER:g} robust standard deviations "
        f"(MAD / 0.6745), in a transcript of at least {SHORT[unit]} characters"
    )


def rank_issues(found: Sequence[LabelIssue]) -> dict[str, list[LabelIssue]]:
    """The strongest first: `worst`, `short`, and `ran_away`, where the model itself is wrong."""
    order = sorted(found, key=lambda each: (-each.rate, -each.errors, each.at))
    contradicted = [each for each in order if each.errors and not each.signs]
    return {
        "worst": [each for each in contradicted if not each.short],
        "short": [each for each in contradicted if each.short],
        "ran_away": [each for each in order if each.signs],
    }


def is_suspect(each: LabelIssue, limit: float) -> bool:
    return not each.signs and not each.short and each.rate > limit


def missing_symbols(found: Sequence[LabelIssue]) -> dict[str, list[dict[str, Any]]]:
    """`letters` and `words` that the model writes in many clips and the transcripts of the same clips in few.

    Each with `it`, and in how many clips it was `heard` and is `written`. A corpus without accents shows here, and one
    whose speakers say what was not written down.
    """
    trusted = [each for each in found if not each.signs]
    return {
        "letters": _lacking([(set(filter(str.isalpha, each.heard)), set(each.reference)) for each in trusted]),
        "words": _lacking([(set(each.heard.split()), set(each.reference.split())) for each in trusted]),
    }


def _lacking(pairs: Sequence[tuple[set[str], set[str]]]) -> list[dict[str, Any]]:
    heard = Counter(it for own, _ in pairs for it in own)
    written = Counter(it for _, own in pairs for it in own)
    return [
        {"it": it, "heard": clips, "written": written[it]}
        for it, clips in heard.most_common()
        if clips >= MANY and written[it] <= LACKING * clips
    ][:MOST_LACKING]
