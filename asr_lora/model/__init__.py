"""The model: Whisper in the asked precision, and what is learnt of it. Only this room knows peft and bitsandbytes."""
