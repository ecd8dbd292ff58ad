"""Every way of tuning side by side, for one checkpoint: what trains, what is saved, what memory it takes; plan's."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf
from rich.table import Table

from asr_lora.config.compose import conf_dir
from asr_lora.config.tuning import LORA_KEYS, PREFIX, LoraConfig, decided
from asr_lora.model import cost
from asr_lora.model.hardware import LABEL_TOKENS
from asr_lora.planning.estimate import architecture, saved_bytes, trained_parameters
from asr_lora.reporting.tables import tuned_by
from asr_lora.runs import folder as run
from asr_lora.speech.audio import MAX_SECONDS

if TYPE_CHECKING:
    from asr_lora.config.compose import Config


@dataclass(frozen=True)
class Way:
    """A kind of tuning in figures: parameters, bytes on the disk, bytes held on a GPU."""

    lora: LoraConfig
    precision: str
    trainable: int
    saved: float
    held: float  # with one clip at 30 s in a forward, in half-precision arithmetic, activations kept


def ways(config: "Config", shape: cost.Shape) -> list[Way]:
    """The run's own as it was asked for, the others as conf/lora/ has them; of model.precision=auto that of a GPU."""
    known = architecture(config.model.checkpoint)
    found = []
    for kind in LORA_KEYS:
        lora, precision = _settings(config, kind)
        trainable = trained_parameters(known, lora)
        held = cost.training_bytes(
            shape, precision, 1, MAX_SECONDS, LABEL_TOKENS, autocast=True, checkpointing=False, trainable=trainable,
            on_gpu=True, **lora.memory,
        )  # fmt: skip
        found.append(Way(lora, precision, trainable, saved_bytes(lora, trainable, shape, precision), held))
    return found


def _settings(config: "Config", kind: str) -> tuple[LoraConfig, str]:
    if kind == config.lora.kind:
        return config.lora, run.settled(config, "cuda")[0].model.precision
    said: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "lora" / f"{kind}.yaml"))
    of_others = {field.name: None for field in fields(LoraConfig)}
    precision = said.get("model", {}).get("precision", config.model.precision)
    return LoraConfig(**{**of_others, **said.get("lora", said)}), decided(precision, "cuda")[0]


def table(config: "Config", shape: cost.Shape) -> Table:
    """A row a way. The caption says what the columns leave open, and what cannot be."""
    made = Table(title=f"ways to tune {config.model.checkpoint}")
    for heading in ("lora=", "what it is", "base", "trainable", "of all", "saved", "memory"):
        made.add_column(heading, justify="left" if heading in ("lora=", "what it is", "base") else "right")
    for way in ways(config, shape):
        share, place = way.trainable / cost.parameters(shape), "model/" if way.lora.whole else "adapter/"
        saved = f"{place} {way.saved / 1e6:,.1f} MB"
        cells = (f"{way.trainable:,}", f"{share:.2%}", saved, f"{way.held / 1e9:.1f} GB")
        made.add_row(way.lora.kind, tuned_by(asdict(way.lora)), way.precision, *cells)
    made.add_row("prefix", "prefix tuning", "", "cannot be", "", "", "")
    made.caption = (
        "memory: predicted for a GPU, one clip at 30 s in a forward, half-precision arithmetic; lora.adam=8bit takes 6 "
        f"bytes a parameter from full's. prefix: {PREFIX}"
    )
    return made
