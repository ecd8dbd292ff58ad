"""asr_lora: fine-tune Whisper for one language with LoRA, and prove what the fine-tuning did."""

import logging
import sys

from asr_lora.runtime.home import provide_home

__version__ = "0.1.0"

NO_HOME = provide_home()  # a line to log where the user has no home folder; before any library is imported

# On CPUs with AVX512-BF16 bitsandbytes 0.50 warns on import, which transformers' trainer does before us, that it has
# not found a package that would speed up 4-bit decoding there. asr_lora never decodes in 4 bits on a CPU: a scored
# adapter is merged into an unquantized base.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if sys.argv[:1] == ["-m"]:  # `python -m asr_lora.<stage>`: answers mistakes before the stage imports its libraries
    from asr_lora.cli import answer_module

    answer_module()
