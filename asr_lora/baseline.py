"""Answers whether to fine-tune, and which size:  python -m asr_lora.baseline data.language=nl data.source=/path

Transcribes test clips with the base models of baseline.models, tiny to turbo. Prints first how long that takes, then
their table, then an answer with its reason, by Distil-Whisper's rule of thumb and by published results, with hours and
dollars of training the size that it names on a T4 and on this machine. A size that is neither on this machine nor given
by the Hub is left out, and named. Writes models.json, hypotheses.jsonl, baseline.json and a page into eval.out, by
default runs/baseline/<language>-<source>.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_url

from asr_lora.config.compose import Config, gpu_settings, model_choice
from asr_lora.config.stages import EvalModelConfig
from asr_lora.eval import score_models
from asr_lora.evaluation import metrics
from asr_lora.model import cost
from asr_lora.model.hardware import resolve_hardware
from asr_lora.model.hub import WEIGHTS, bytes_on_hub, is_hub_id, is_local, parse_id, weights_are_here
from asr_lora.model.pretrained import load_config
from asr_lora.planning import advice
from asr_lora.planning.devices import HERE, decoding_seconds_here, durations, estimate_here, estimate_on_gpu
from asr_lora.planning.estimate import Estimate, workload
from asr_lora.reporting import models as table
from asr_lora.runs.launch import launch
from asr_lora.runtime.commands import to_run
from asr_lora.runtime.console import format_bytes, format_duration, log
from asr_lora.runtime.errors import ConfigError, ExternalError, check
from asr_lora.runtime.files import existing, write_json
from asr_lora.runtime.screen import show, show_line
from asr_lora.speech.normalizer import Normalizer, primary_metric
from asr_lora.systems.opening import names_of

GPU = "t4"


def baseline(config: Config) -> Path:
    """Scores the base models, prints and writes the answer, and returns the folder of both.

    Raises ConfigError and ExternalError as scoring eval.models does, and where no base model is to be had.
    """
    check("eval.models", len(config.eval.models), "empty; baseline has baseline.models", not config.eval.models)
    found, left_out = within_reach(config.baseline.models)
    asked = [EvalModelConfig(model=each) for each in found]
    names = dict(zip(names_of(asked), found, strict=True))
    shapes = {name: cost.dimensions(load_config(each).to_dict()) for name, each in names.items()}
    largest = max(names, key=lambda name: cost.parameters(shapes[name]))
    config = replace(
        config, model=replace(config.model, checkpoint=names[largest]),
        eval=replace(config.eval, models=asked, limit=config.baseline.clips, against=None),
    )  # fmt: skip
    seconds, origin = durations(config)
    estimated = _show_times(config, found, shapes, seconds[config.eval.split])
    folder, facts, lines = score_models(config, "baseline")
    (folder / "baseline.json").unlink(missing_ok=True)  # an old answer must not remain beside new scores
    hours = None if origin.startswith("typical") and config.data.hours is None else sum(seconds["train"]) / 3600
    normal = Normalizer(config.eval.normalizer, facts["language"], config.eval.numbers)
    answer = answered(facts, lines, shapes, hours, config.seed, normal)
    best = names[answer["model"]]
    words, costs = _named(best), _costs(config, best, seconds)
    answer |= {
        "train_with": words, "hours_from": origin, "cost": costs, "left_out": left_out, "estimated_seconds": estimated,
    }  # fmt: skip
    answer["text"] = " ".join([answer["text"], _cost_text(words, costs), _left_out_text(left_out)]).strip()
    write_json(folder / "baseline.json", answer)
    show_line("")
    show_line(answer["text"])
    log(f"page: {table.write_page(folder, facts, lines, answer['text'])}")
    return folder


# ---- which models, and how long they take ----


def within_reach(asked: Sequence[str]) -> tuple[dict[str, int | None], dict[str, str]]:
    """Returns the models that can be had, with the bytes to download (None: on this machine), and why others cannot.

    Raises ConfigError for a path that leads nowhere, and ExternalError where no model can be had.
    """
    found, left_out = dict[str, int | None](), dict[str, str]()
    for each in asked:
        if not is_local(each) and not is_hub_id(each):
            existing(Path(each), "baseline.models")
        if weights_are_here(each):
            found[each] = None
            continue
        hub, revision = parse_id(each)
        try:
            found[each] = bytes_on_hub(hf_hub_url(hub, WEIGHTS[0], revision=revision)) or 0
        except ExternalError as error:
            left_out[each] = str(error)
            log(f"left out: {each} is not on this machine, and the Hub does not give it ({error})")
    if not found:
        raise ExternalError(
            f"baseline.models: none of {', '.join(asked)} is on this machine, and the Hub gives none; fix the network, "
            "or name folders, 'baseline.models=[/path/to/whisper-base]'"
        )
    return found, left_out


def _show_times(
    config: Config, found: Mapping[str, int | None], shapes: Mapping[str, cost.ModelDimensions],
    seconds: Sequence[float],
) -> dict[str, float]:  # fmt: skip
    """Prints and returns the estimated seconds of decoding by model; only config.json has been downloaded before."""
    hardware = resolve_hardware(config.hardware, config.model, config.lora, config.training.batch_size)
    clips = seconds[: config.baseline.clips]
    took = {name: decoding_seconds_here(config, hardware, shape, clips) for name, shape in shapes.items()}
    downloads = ["-" if size is None else format_bytes(size) if size else "size not known" for size in found.values()]
    rows = [[name, format_duration(took[name]), download] for name, download in zip(took, downloads, strict=True)]
    rows.append(["all", format_duration(sum(took.values())), ""])
    notes = ["estimated from this machine's rate on large matrices, without downloads; texts in the cache take no time"]
    show(f"{len(clips)} {config.eval.split} clips on {hardware.name}", ("model", "decoding", "download"), rows, notes)
    return took


# ---- the answer ----


def answered(
    facts: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], shapes: Mapping[str, cost.ModelDimensions],
    hours: float | None, seed: int, normal: Normalizer,
) -> dict[str, Any]:  # fmt: skip
    """Returns the answer of baseline.json for the scores of models.json and its lines, by the best of the models.

    Raises ConfigError where no reference has a word.
    """
    rate, scores = primary_metric(facts["language"]), facts["models"]
    if any(own[rate] is None for own in scores.values()):
        raise ConfigError(f"data.source: no reference of {facts['source']} has a word; nothing can be advised")
    best = min(scores, key=lambda name: (scores[name][rate], cost.parameters(shapes[name])))
    sizes = {}
    for name, own in scores.items():
        verdict, reason = advice.advise(own[rate], own[f"{rate}_ci95"], hours)
        sizes[name] = {"rate": own[rate], "ci95": own[f"{rate}_ci95"], "answer": verdict, "reason": reason}
    smaller = [name for name in scores if cost.parameters(shapes[name]) < cost.parameters(shapes[best])]
    alike = [name for name in smaller if _may_be_chance(lines, best, name, rate, seed, normal)]
    where, cited = advice.results_like(scores[best][rate])
    return {
        "answer": sizes[best]["answer"], "model": best, "metric": rate, "hours": hours, "sizes": sizes, "alike": alike,
        "began": where, "cited": [vars(each) for each in cited], "rule": advice.GUIDE,
        "text": _text(best, rate, sizes, alike),
    }  # fmt: skip


def _may_be_chance(
    lines: Sequence[Mapping[str, Any]], best: str, name: str, rate: str, seed: int, normal: Normalizer
) -> bool:
    """Returns whether the paired interval of the difference between two models contains 0."""
    references, speakers = ([line[key] for line in lines] for key in ("reference", "speaker"))
    leading, own = ([line["hypotheses"][each] for line in lines] for each in (best, name))
    bounds = metrics.delta_interval(metrics.paired_delta(references, leading, own, speakers, normal, seed), rate)
    return bounds is None or bounds[0] <= 0 <= bounds[1]


def _text(best: str, rate: str, sizes: Mapping[str, Mapping[str, Any]], alike: Sequence[str]) -> str:
    own, unit = sizes[best], rate.upper()
    said = {
        advice.YES: f"Fine-tune {best}",
        advice.NO: f"Probably no fine-tuning; take {best} as it is",
        advice.UNCERTAIN: f"Not certain whether to fine-tune; {best} is the size to try",
    }[own["answer"]]
    of = f", the lowest of {len(sizes)} models" if len(sizes) > 1 else ""
    sentences = [
        f"{said}: its {unit} without fine-tuning is {metrics.percent(own['rate'])} ({metrics.interval(own['ci95'])})"
        f"{of}: {own['reason']}.",
        f"The rule, of Distil-Whisper's guide (github.com/huggingface/distil-whisper, training): fine-tune above "
        f"{advice.ABOVE:.0%} WER{'' if rate == 'wer' else ' (here of CER)'} with less than 1,000 h of speech; below "
        f"{advice.BELOW:.0%} is our limit, by published results.",
        f"What to expect: {advice.gains(own['rate'])}; docs/evaluation.md has each with its source.",
    ]
    if alike:
        sentences.append(f"On these clips the lead of {best} over {', '.join(alike)}, smaller, may be chance.")
    if others := [f"{name}, {each['answer']}" for name, each in sizes.items() if name != best]:
        sentences.append(f"By the same rule: {'; '.join(others)}. A tuned small model may stay behind {best}.")
    return " ".join(sentences)


# ---- what training would cost ----


def _named(checkpoint: str) -> list[str]:
    """Returns the overrides that name a base model."""
    choice = model_choice(checkpoint)
    return [f"model={choice}"] if choice else [f"model.checkpoint={checkpoint}"]


def _costs(config: Config, checkpoint: str, seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, Any]]:
    """Returns hours and dollars of a run on the model, as `plan` has them, on a T4 and on this machine."""
    own = replace(config, model=replace(config.model, checkpoint=checkpoint))
    work = workload(own, seconds)
    gpu = gpu_settings(GPU)
    devices = {
        GPU: (estimate_on_gpu(replace(own, hardware=gpu), work), gpu.dollars_per_hour),
        HERE: (estimate_here(own, work), config.hardware.dollars_per_hour),
    }
    return {name: _cost(*each) for name, each in devices.items()}


def _cost(estimate: Estimate, per_hour: float | None) -> dict[str, Any]:
    hours = sum(estimate.seconds.values()) / 3600 if estimate.seconds else None
    dollars = None if hours is None or per_hour is None else hours * per_hour
    return {"hours": hours, "dollars": dollars, "problem": estimate.problem}


def _cost_text(words: Sequence[str], costs: Mapping[str, Mapping[str, Any]]) -> str:
    shown = [f"{word.partition('=')[0]}=..." if word.startswith("model.checkpoint=") else word for word in words]
    parts = []
    for name, each in costs.items():
        took = "unknown" if each["hours"] is None else f"{each['hours']:.2f} h"
        price = "" if each["dollars"] is None else f", ${each['dollars']:.2f}"
        parts.append(f"{took}{price} on {name}{'' if each['problem'] is None else ' (' + each['problem'] + ')'}")
    more = f"{to_run('plan', *shown)}, with your other settings, has the parts"
    return f"Training it is planned to take {' and '.join(parts)}; {more}."


def _left_out_text(left_out: Mapping[str, str]) -> str:
    if not left_out:
        return ""
    return f"{len(left_out)} left out, neither on this machine nor given by the Hub: {', '.join(left_out)}."


def main(config: Config) -> None:
    """Answers with the settings of the command line."""
    baseline(config)


if __name__ == "__main__":
    launch(main)
