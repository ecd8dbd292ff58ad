"""Tab completion by Hydra for the one command:  eval "$(asr-lora -sc install=bash)" """

import os
import sys
from collections.abc import Iterable

import hydra
from omegaconf import DictConfig

from asr_lora.config.conf import conf_dir

COMMAND, LINE = "asr-lora", "COMP_LINE"  # the shell hands over in LINE what was typed so far


def complete(stages: Iterable[str]) -> None:
    """Prints the script that a shell installs, or what may follow: a stage, then its settings and their choices."""
    typed = os.environ.get(LINE, "")
    words = typed.split(maxsplit=2)
    if LINE in os.environ and len(words) + typed.endswith(" ") < 3:
        sys.stdout.write(" ".join(stages) + "\n")
        return
    os.environ[LINE] = " ".join([COMMAND, *words[2:]]) + " " * (len(words) == 2)  # Hydra knows of no stages
    sys.argv[0] = COMMAND
    hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(_nothing)()


def _nothing(_: DictConfig) -> None:
    """Stands for a stage, none of which is imported."""
