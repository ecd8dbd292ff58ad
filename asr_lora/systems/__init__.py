"""Recognizers of any kind that transcribe the same clips: checkpoints, runs, exports, servers, lists of texts."""
