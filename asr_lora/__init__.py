"""asr_lora: fine-tune Whisper for one language with LoRA, and prove what the fine-tuning did."""

__version__ = "0.1.0"
