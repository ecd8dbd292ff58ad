"""Templates of the page, the comparison and the model card, and what all of them may call."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from asr_lora import metrics, tables, text


def environment(autoescape: bool) -> Environment:
    """`autoescape` for a page, where whatever a corpus or a person wrote must stay text; a card is no HTML."""
    made = Environment(
        loader=PackageLoader("asr_lora", "page"), autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "percent": tables.percent, "points": tables.points, "interval": tables.interval,
        "interval_points": lambda bounds: tables.interval(bounds, tables.points), "difference": tables.difference,
    }  # fmt: skip
    made.globals |= {
        "leading": text.leading, "leading_first": tables.leading_first, "delta_interval": metrics.delta_interval,
        "normalised": tables.normalised, "heard": tables.heard, "change": tables.change, "heard_at": tables.heard_at,
        "heard_again": tables.heard_again, "runaways": tables.runaways, "small": tables.small,
        "strength_cell": tables.strength_cell, "dialled": tables.dialled, "is_best": tables.is_best,
        "CHOSEN_ON_DEV": tables.CHOSEN_ON_DEV,
    }  # fmt: skip
    return made
