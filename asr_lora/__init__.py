"""asr_lora: fine-tune Whisper for one language with LoRA, and prove what the fine-tuning did."""

import logging

from asr_lora.runtime.home import provide_home

__version__ = "0.1.0"

NO_HOME = provide_home()  # what is to be said of it, where the user has none; before any library is imported

# On CPUs with AVX512-BF16 bitsandbytes 0.50 warns as it is imported, before us by transformers' trainer, that it
# has not found a package which would speed up 4-bit decoding there. Nobody here decodes in 4 bits on a CPU: what is
# scored is merged into an unquantised base.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
