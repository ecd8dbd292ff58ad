"""The audit page of a run's clips and transcripts:  python -m asr_lora.prepare ... prepare.audit=true

With prepare.audit_decode=500 the base model also decodes clips, and the page lists the transcripts that it contradicts.
Writes audit/index.html into the run folder, which needs no network, and beside it the clips that it plays;
audit/audit.json, the same as numbers and ids; and audit/suspects.txt, the ids for data.exclude_ids once a user has
reviewed them. Clips of dev and test that only the model contradicts are shown, but not listed. Facts of the audio come
from the cache of the scan that preparation made.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from asr_lora.config.compose import quote_override
from asr_lora.config.schema import DataConfig
from asr_lora.corpus import SPLITS
from asr_lora.data import quality
from asr_lora.data.manifest import audio_suffix, encoded_audio, read_manifest
from asr_lora.data.quality import ISSUES, Issue, ScannedClip
from asr_lora.evaluation.error_analysis import alignments
from asr_lora.evaluation.eval_sets import EvalSet
from asr_lora.evaluation.label_issues import (
    LabelIssue,
    is_suspect,
    label_issues,
    missing_symbols,
    rank_issues,
    suspect_rule,
    suspect_threshold,
    trusted_rates,
)
from asr_lora.reporting import charts
from asr_lora.reporting.pages import environment
from asr_lora.runs import folder
from asr_lora.runtime.console import log, progress
from asr_lora.runtime.errors import ConfigError, ExternalError
from asr_lora.runtime.files import atomic_folder, read_json, write_json, write_text
from asr_lora.speech.audio import AudioScanner, AudioSegment
from asr_lora.speech.normalizer import Normalizer, primary_metric

SHOWN = 6  # clips of every kind, with a player
SHOWN_CONTRADICTED = 20  # transcripts that the model contradicts
ALWAYS = ("undecodable", "truncated", "silent")  # kinds that are suspect whatever the model decodes
SIGNS = {
    "compression": "repetitive", "loop": "repetition loop", "rate": "more words than the time allows",
    "limit": "truncated", "silence": "text where the transcript is empty",
}  # fmt: skip


def audit(
    run: Path, data: DataConfig, token: str, normalizer: str,
    decode: Callable[[Sequence[EvalSet]], Sequence[Mapping[str, Any]]] | None = None, most: int = 0,
) -> Path:  # fmt: skip
    """Writes the audit page of a prepared run, and returns its path.

    `token` is Whisper's language. `decode` returns the base model's hypotheses of sets, as `decode_sets` does: it gets
    the first `most` training clips and all of dev and test. Without it nothing is decoded.
    """
    summary = read_json(folder.summary(run))
    normal, unit = _normalizer(normalizer, token), "characters" if primary_metric(token) == "cer" else "words"
    utterances = _utterances(run, summary["source"], normal)
    odd = quality.find_issues(utterances, unit)
    contradicted = _contradicted(decode, most, utterances, token, normal, unit) if decode else []
    limit = suspect_threshold(contradicted)
    suspects, for_review = _suspects(utterances, odd, contradicted, limit)
    facts = _facts(utterances, odd, unit) | {
        "normalizer": str(normal), "decoded": _decoded(utterances, contradicted, limit),
        **_listed("suspects", utterances, suspects), **_listed("for_review", utterances, for_review),
    }  # fmt: skip
    marks = dict.fromkeys(suspects, "in suspects.txt") | dict.fromkeys(for_review, "for review, not in suspects.txt")
    made = run / "audit"
    edited = _edited(made)
    with atomic_folder(made) as partial:
        clips = partial / "clips"
        clips.mkdir()
        text = environment(autoescape=True).get_template("audit.html").render(
            name=run.name, summary=summary, facts=facts, kinds=ISSUES, drop=data.exclude_ids,
            rule=suspect_rule(unit), apply=_apply(data, made),
            charts=_charts(utterances, unit, contradicted, limit),
            shown={kind: [_example(utterances[at], detail, clips, marks.get(at)) for at, detail in own[:SHOWN]]
                   for kind, own in odd.items()},
            contradicted=_shown_contradicted(utterances, contradicted, marks, token, clips),
        )  # fmt: skip
        write_text(partial / "index.html", text)
        write_json(partial / "audit.json", facts)
        _write_suspects(partial, facts["suspects"], edited)
    if edited is not None:
        log(f"{made / 'suspects.txt'} was edited and is kept; the new list is suspects-new.txt beside it")
    then = f"; review them, then {_apply(data, made)}" if suspects else ""
    log(f"suspects: {len(suspects)} of {len(utterances)} clips{then}")
    if for_review:
        log(f"{len(for_review)} clips of dev and test are for review, not in suspects.txt: a model contradicts them")
    log(f"page: {made / 'index.html'}")
    return made / "index.html"


def _normalizer(name: str, token: str) -> Normalizer:
    """Returns the normalizer, with digits as words if num2words has the language (7 equals seven)."""
    try:
        return Normalizer(name, token, numbers=True)
    except ConfigError:  # num2words does not know the language
        return Normalizer(name, token)


def _utterances(run: Path, source: str, normal: Normalizer) -> list[ScannedClip]:
    """Returns all clips of the manifest with their audio facts, from the cache or by a scan."""
    lines = [(split, clip) for split in SPLITS for clip in read_manifest(folder.manifest(run, split))]
    if in_shards := [clip for _, clip in lines if "offset" in clip]:
        raise ConfigError(
            f"audit: takes no clips in shards, got {len(in_shards)} of {run}; audit the run that they were written from"
        )
    segments = [AudioSegment(Path(clip["path"]), clip.get("start"), clip.get("end")) for _, clip in lines]
    found = []
    with AudioScanner(source) as scanner, progress("scanning clips", total=len(lines)) as bar:
        for (split, clip), info in zip(lines, scanner.scan(segments), strict=True):
            found.append(ScannedClip(clip, split, info, normal(clip["text"])))
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
        issue
        for each, model in zip(sets, models, strict=True)
        for issue in label_issues(places[each.name], utterances, model, normal, unit)
    ]


def _suspects(
    utterances: Sequence[ScannedClip],
    odd: Mapping[str, Sequence[Issue]],
    contradicted: Sequence[LabelIssue],
    limit: float,
) -> tuple[list[int], list[int]]:
    """Returns the clips for suspects.txt and those for review alone, as indices in the manifest's order.

    Of dev and test only facts of the audio are listed: without the clips that the base model contradicts, they would be
    chosen by its errors, and no longer be a fair test of it.
    """
    sure = {issue.at for kind in ALWAYS for issue in odd[kind]}
    found = {issue.at for issue in contradicted if is_suspect(issue, limit)}
    held_out = {at for at in found if utterances[at].split != "train"}
    return sorted(sure | found - held_out), sorted(held_out - sure)


def _listed(name: str, utterances: Sequence[ScannedClip], places: Sequence[int]) -> dict[str, Any]:
    return {name: [utterances[at].clip["id"] for at in places], f"{name}_by_split": _by_split(utterances, places)}


def _edited(folder: Path) -> str | None:
    """Returns suspects.txt if a user has edited it since the last audit, else None."""
    listed, facts = folder / "suspects.txt", folder / "audit.json"
    if not listed.is_file():
        return None
    current = listed.read_text(encoding="utf-8")
    return None if facts.is_file() and current == _listing(read_json(facts)["suspects"]) else current


def _write_suspects(folder: Path, suspects: Sequence[str], edited: str | None) -> None:
    write_text(folder / "suspects.txt", _listing(suspects) if edited is None else edited)
    if edited is not None:
        write_text(folder / "suspects-new.txt", _listing(suspects))


def _listing(suspects: Sequence[str]) -> str:
    return "".join(f"{name}\n" for name in suspects)


def _apply(data: DataConfig, folder: Path) -> str:
    """Returns the command that trains without the listed clips."""
    listed = str(folder / "suspects.txt")
    if re.fullmatch(r"[\w./+-]+", listed, re.ASCII):
        hours = "all" if data.hours is None else f"{data.hours:g}"
        return f"make train LANG={data.language} HOURS={hours} ... ARGS='data.exclude_ids={listed}'"
    return f"python -m asr_lora.train ... {shlex.quote(f'data.exclude_ids={quote_override(listed)}')}"


def _facts(utterances: Sequence[ScannedClip], odd: Mapping[str, Sequence[Issue]], unit: str) -> dict[str, Any]:
    """Returns the content of audit.json, except for what was decoded and the suspects."""
    pace = {name: value for name, value in quality.pace(utterances, unit)[2].items() if name != "rates"}
    return {
        "splits": {split: _split([each for each in utterances if each.split == split]) for split in SPLITS},
        "pace": pace,
        "odd": {
            kind: {
                "clips": len(own),
                "by_split": _by_split(utterances, [issue.at for issue in own]),
                "found": {utterances[issue.at].clip["id"]: issue.detail for issue in own},
            }
            for kind, own in odd.items()
        },
        "odd_clips": len({issue.at for own in odd.values() for issue in own}),
    }


def _split(own: Sequence[ScannedClip]) -> dict[str, Any]:
    seconds = [each.seconds for each in own]
    loud = [quality.decibels(each.audio.loudness) for each in own if each.audio.loudness]
    return {
        "clips": len(own),
        "hours": round(sum(seconds) / 3600, 4),
        **quality.speakers(own),
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
        "contradicted": {utterances[each.at].clip["id"]: each.rate for each in contradicted if is_suspect(each, limit)},
        "short": {utterances[each.at].clip["id"]: each.rate for each in ranked["short"] if each.rate > limit},
        "ran_away": {utterances[each.at].clip["id"]: list(each.signs) for each in ranked["ran_away"]},
        "lacking": missing_symbols(contradicted),
    }  # fmt: skip


def _charts(
    utterances: Sequence[ScannedClip], unit: str, contradicted: Sequence[LabelIssue], limit: float
) -> dict[str, Any]:
    """Returns `durations` as titles and SVGs; `pace` and the model's `error` as SVGs, None without data."""
    pace = quality.pace(utterances, unit)[2]
    durations = {split: [each.seconds for each in utterances if each.split == split] for split in SPLITS}
    drawn = [(split, charts.histogram(own, "seconds")) for split, own in durations.items()]
    outside, rates = [pace["low"], pace["high"]], trusted_rates(contradicted)
    return {
        "durations": [(title, Markup(svg)) for title, svg in drawn],
        "pace": Markup(charts.histogram(pace["rates"], f"{unit} per second", outside)) if pace["rates"] else None,
        "error": Markup(charts.shares(rates, "character error rate", [limit])) if rates else None,
    }


def _example(each: ScannedClip, detail: str, clips: Path, mark: str | None) -> dict[str, Any]:
    return {
        "id": each.clip["id"], "split": each.split, "seconds": each.seconds, "detail": detail,
        "text": each.clip["text"], "mark": mark, "sound": _sound(each, clips),
    }  # fmt: skip


def _shown_contradicted(
    utterances: Sequence[ScannedClip], contradicted: Sequence[LabelIssue], marks: Mapping[int, str], token: str,
    clips: Path,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Returns the groups of `rank_issues` with alignments, by characters in unspaced scripts."""
    by_character = Normalizer("characters", token) if primary_metric(token) == "cer" else str

    def shown(each: LabelIssue) -> dict[str, Any]:
        (chunks,) = alignments([by_character(each.reference)], [by_character(each.hypothesis_normalized)])
        rate = f"{each.rate:.0%}: {each.errors} of {each.characters} characters"
        detail = ", ".join(SIGNS[sign] for sign in each.signs) or rate
        return _example(utterances[each.at], detail, clips, marks.get(each.at)) | {"chunks": chunks}

    most = {"worst": SHOWN_CONTRADICTED}
    return {
        name: [shown(each) for each in own[: most.get(name, SHOWN)]] for name, own in rank_issues(contradicted).items()
    }


def _sound(each: ScannedClip, clips: Path) -> str | None:
    """Writes the clip (of a long recording its segment) beside the page; None if it cannot be decoded."""
    if each.audio.problem:
        return None
    target = clips / f"{each.audio.sha256[:20]}.{audio_suffix(each.clip)}"
    if not target.is_file():
        try:
            target.write_bytes(encoded_audio(each.clip))
        except ExternalError as error:
            log(f"no player on the page for {each.clip['id']}: {error}")
            return None
    return f"clips/{target.name}"
