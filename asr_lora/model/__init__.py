"""The model: Whisper in the asked precision, and the adapter on it. The only room that knows peft and bitsandbytes."""

import logging

# On CPUs with AVX512-BF16 bitsandbytes 0.50 warns at every import that it has not found a package which would speed up
# 4-bit decoding there. Nobody here decodes in 4 bits on a CPU: what is scored is merged into an unquantised base.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
