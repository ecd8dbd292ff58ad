"""What settings of sound and text are checked against, without torch: Whisper's window and names of choices."""

MAX_SECONDS = 30.0  # Whisper's window
# Log-mel features are floored at 8 powers of ten below a clip's maximum, and scaled by (log10 + 4) / 4 (Radford et al.
# 2023, whisper/audio.py): so silence behind a clip is at its maximum minus 2. Behind real speech that is about -0.7.
BELOW_MAXIMUM = 2.0
NO_SOUND = -1.5  # the feature of no sound at all: 1e-10 is the least power that features resolve
CONTEXTS = ("auto", "full", "plain")  # of decoding: the adapter's own, 30 s, a short one with nothing behind
AUGMENTATIONS = ("light", "noisy", "telephone")  # asr_lora/speech/augment.py
NORMALIZERS = (  # asr_lora/speech/normalizer.py
    "raw", "basic", "marks", "unpointed", "characters", "leaderboard-en", "leaderboard-multilingual",
)  # fmt: skip
