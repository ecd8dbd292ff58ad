"""The model: Whisper in the asked precision, and the adapter on it. The only room that knows peft and bitsandbytes."""
