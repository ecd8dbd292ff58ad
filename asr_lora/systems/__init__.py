"""Recognizers of any kind on the same clips: checkpoints, runs, exports, servers, lists of texts."""
