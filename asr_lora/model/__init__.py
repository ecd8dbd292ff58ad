"""Whisper, its adapters, and the device that holds them; the only folder that knows peft and bitsandbytes."""
