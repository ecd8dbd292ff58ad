"""Names of runs, made of the settings that a result depends on, and settings that were renamed."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from asr_lora.runtime.files import sha256_text

# Names of settings until 2026-11-29 with the current ones; and values that were renamed with them.
RENAMED = {
    "audit": "prepare.audit", "audit_decode": "prepare.audit_decode",
    "shards": "prepare.shards", "shards_dir": "prepare.shards_dir",
    "data.drop": "data.exclude_ids", "data.exclude": "data.exclude_overlap", "data.held_out": "data.heldout_share",
    "training.warmup": "training.warmup_ratio", "training.margin": "training.context_margin",
    "training.multiple": "training.context_multiple", "decoding.margin": "decoding.context_margin",
    "lora.b_rate": "lora.lr_ratio", "lora.orthogonality": "lora.orth_reg_weight",
    "lora.double_quantisation": "lora.double_quant", "lora.adam": "lora.optim",
    "guard.bad_step": "divergence.on_bad_step", "guard.spike": "divergence.loss_spike",
    "guard.in_a_row": "divergence.max_bad_steps", "guard.collapse": "divergence.on_collapse",
    "guard.lower": "divergence.lr_factor",
    "hardware.memory": "hardware.memory_gb", "hardware.rates": "hardware.tflops",
    "search.startup": "search.startup_trials", "search.warmup": "search.warmup_share",
    "transcribe.untouched": "transcribe.base_model", "transcribe.longest": "transcribe.max_segment_seconds",
    "transcribe.windows": "transcribe.long_form", "transcribe.together": "transcribe.mixed_batches",
    "export.pushed": "export.push_format", "export.tolerance": "export.wer_tolerance",
    "app.max_waiting": "app.max_queue",
    "training.packed_single": "training.window_single", "training.packed_timestamps": "training.window_timestamps",
}  # fmt: skip
RENAMED_VALUES: Mapping[str, Mapping[Any, str]] = {
    "divergence.on_bad_step": {"back": "rollback"},
    "divergence.on_collapse": {"back": "rollback", "go_on": "ignore"},
    "lora.optim": {"32bit": "adamw", "8bit": "adamw_8bit"},
    "training.context": {"packed": "windows"},
    "transcribe.long_form": {False: "vad", True: "sequential"},
}
# Settings that were added since, with the values that runs without them were made with.
ADDED: Mapping[str, Mapping[str, Any]] = {
    "data": {"splits": None, "refine_cues": False, "augment_labels": None},
    "export": {"short_margin": 1.0, "long_minutes": 5.0}, "model": {"learning_rate": 1e-3},
    "eval": {"contexts": [], "margins": [1.0], "long_form": ["vad", "sequential"], "prompt": None,
             "models": [], "against": None, "out": None},
    "transcribe": {"words": False, "prompt": None, "hotwords": []},
    "training": {
        "plain_share": 0.0, "soup": 1, "mask_count": 2, "mask_bins": 27, "mask_seconds": 0.5, "mask_share": 0.2,
        "window_share": 1.0, "window_prompts": 0.0, "window_pauses": [0, 0], "no_speech_share": 0.0,
    },
}  # fmt: skip
# Settings that were removed since: a run that was made with one is scored and exported as ever.
REMOVED = (
    "training.mask_time_prob", "training.mask_feature_prob", "training.long_share", "training.long_rows",
    "training.long_seconds",
)  # fmt: skip
RUN_NAME_LIMIT = 80  # characters
GROUPS = ("data", "model", "lora", "training", "divergence", "decoding")  # of settings that a result depends on


def run_name(settings: Mapping[str, Any], usual: Mapping[str, Any]) -> str:
    """Makes a run's name: language, hours, model, tuning method, r, seed, and what differs from `usual`.
    Over 80 characters the tail becomes eight hexadecimal digits of the whole: no two experiments share a name. The
    name follows from the settings alone, never from files: the same settings always find the same run.
    Both arguments are nested dictionaries, as `compose.to_dict` makes them.
    """
    data, lora, experiment = settings["data"], settings["lora"], settings["experiment_name"]
    hours = "all" if data["hours"] is None else f"{np.format_float_positional(data['hours'], trim='-')}h"
    rank = [] if lora["r"] is None else [f"r{lora['r']}"]
    parts = [data["language"], hours, settings["model"]["name"], lora["kind"], *rank, f"s{settings['seed']}"]
    if experiment:
        parts.append(experiment)
    named = {"data.language", "data.hours", "model.name", "lora.kind", "lora.r", "seed"}
    flat, ordinary = result_settings(settings), result_settings(usual)
    parts += [_short(key, value) for key, value in flat.items() if key not in named and value != ordinary[key]]
    name = "-".join(parts)
    if len(name) > RUN_NAME_LIMIT:
        name = f"{name[: RUN_NAME_LIMIT - 9]}-{_digest(name)}"
    return name


def result_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that a result depends on, flat: `{"lora.r": 32, ...}`.

    Hardware, evaluation and names are not among them.
    """
    flat = {
        f"{group}.{key}": value
        for group in GROUPS
        for key, value in plain_sources(settings.get(group, {})).items()
        # A run resumes exactly, from any checkpoint.
        if f"{group}.{key}" not in ("training.save_steps", "training.max_hours", "training.keep_adapters")
    }
    return {**flat, "seed": settings["seed"]}


def plain_sources(branch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a branch of settings whose `sources` have no `token` that is None, as there once was no such key."""
    plain = [
        {key: value for key, value in each.items() if key != "token" or value is not None}
        for each in branch.get("sources", ())
    ]
    return {**branch, "sources": plain} if "sources" in branch else dict(branch)


def with_todays_names(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested settings that an earlier version recorded, as this one would have recorded them."""
    found: dict[str, Any] = {}
    for group, value in settings.items():
        branch = value if isinstance(value, dict) and group != "adapters" else {"": value}
        for key, old in branch.items():
            before = f"{group}.{key}" if key else group
            if before in REMOVED:
                continue
            name = RENAMED.get(before, before)
            new = RENAMED_VALUES.get(name, {}).get(old, old) if isinstance(old, str | bool) else old
            new_group, _, new_key = name.partition(".")
            if new_key:
                found.setdefault(new_group, {})[new_key] = new
            else:
                found[new_group] = new
    for group, added in ADDED.items():
        if group in found:
            found[group] = {**added, **found[group]}
    return found


_ABBREVIATIONS = {
    "training.learning_rate": "lr",
    "training.batch_size": "b",
    "training.max_steps": "steps",
    "training.context": "",
    "model.precision": "",
    "data.augment": "",
    "data.seed": "draw",
}
_PATHS = ("data.source", "data.search_dir", "model.checkpoint")


def _short(key: str, value: Any) -> str:
    """Abbreviates a setting: `training.learning_rate`, 3e-4 -> `lr3e-4`.

    true becomes the key, a path its last part and its digest.
    """
    label = _ABBREVIATIONS.get(key, key.rpartition(".")[2].replace("_", ""))
    if value is True:
        return label
    if isinstance(value, float) and 0 < abs(value) < 0.01:
        text = np.format_float_scientific(value, trim="-", exp_digits=1)
    elif isinstance(value, float):
        text = np.format_float_positional(value, trim="-")
    elif isinstance(value, list):
        text = "+".join(map(str, value))
    else:
        text = str(value)
    if key not in _PATHS and re.fullmatch(r"[\w.+-]{1,24}", text, re.ASCII):
        return f"{label}{text}"
    stem = re.sub(r"[^\w.+-]+", "_", Path(text).name, flags=re.ASCII).strip("_.")[:24]
    return f"{'' if key in _PATHS else label}{stem}-{_digest(f'{key}={text}')}"


def _digest(text: str) -> str:
    return sha256_text(text)[:8]
