"""A clip whose text is corrected."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A clip with the text that is corrected: a recording, or what lies between `start` and `end` (s) of one.

    `disagreement` sorts the items, the largest first; `why` says it in words. `second` is another decoding, empty
    where there is none; `split` and `clip` are those of a clip of a run, with its id there.
    """

    path: str
    start: float | None
    end: float | None
    duration: float
    text: str
    speaker: str = ""
    disagreement: tuple[float, float] = (0.0, 0.0)
    why: str = ""
    second: str = ""
    split: str = ""
    clip: str = ""

    @property
    def key(self) -> str:
        return f"{self.path}|{self.start}|{self.end}"
