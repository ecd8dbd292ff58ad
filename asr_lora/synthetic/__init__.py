"""Dutch speech of our own making, as a Common Voice archive: what the demo learns where no data can be fetched."""

from asr_lora.synthetic.archive import RELEASE, write_demo_corpus

__all__ = ["RELEASE", "write_demo_corpus"]
