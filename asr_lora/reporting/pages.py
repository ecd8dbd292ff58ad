"""Templates of the page, the comparison and the model card, and what all of them may call."""

import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from asr_lora.evaluation import metrics
from asr_lora.reporting import tables
from asr_lora.reporting.sharing import shared_command, shared_value
from asr_lora.speech import normalizer as text


def unbroken(text: str) -> Markup:
    """The text as HTML in which no line ends within parentheses, so that an interval is read at one glance."""
    safe = str(escape(text))  # as an ordinary string: what is put into Markup is escaped
    marked = re.sub(r"\([^()]*\)", r'<span class="whole">\g<0></span>', safe)
    return Markup(f"<span>{marked}</span>")  # one piece, which a phone sets beside its name


def environment(autoescape: bool) -> Environment:
    """`autoescape` for a page, where whatever a corpus or a person wrote must stay text; a card is no HTML."""
    made = Environment(
        loader=PackageLoader("asr_lora", "reporting/templates"), autoescape=autoescape, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    made.filters |= {
        "percent": tables.percent, "points": tables.points, "interval": tables.interval,
        "interval_points": lambda bounds: tables.interval(bounds, tables.points), "difference": tables.difference,
        "unbroken": unbroken, "shared_command": shared_command,
    }  # fmt: skip
    made.globals |= {
        "leading": text.leading, "leading_first": tables.leading_first, "delta_interval": metrics.delta_interval,
        "normalised": tables.normalised, "heard": tables.heard, "change": tables.change, "heard_at": tables.heard_at,
        "heard_again": tables.heard_again, "runaways": tables.runaways, "small": tables.small,
        "strength_cell": tables.strength_cell, "dialled": tables.dialled, "is_best": tables.is_best,
        "drawn_of": tables.drawn_of, "shared_value": shared_value,
        "CHOSEN_ON_DEV": tables.CHOSEN_ON_DEV, "FOLDED": tables.FOLDED, "tuned_by": tables.tuned_by,
    }  # fmt: skip
    return made
