"""What settings of sound and text are checked against, without torch: Whisper's window and names of choices."""

MAX_SECONDS = 30.0  # Whisper's window
CONTEXTS = ("auto", "full", "plain")  # of decoding: the adapter's own, 30 s, a short one with nothing behind
AUGMENTATIONS = ("light", "noisy", "telephone")  # asr_lora/speech/augment.py
NORMALIZERS = ("raw", "basic", "marks", "unpointed", "characters")  # asr_lora/speech/normalizer.py
