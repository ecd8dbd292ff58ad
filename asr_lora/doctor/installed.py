"""Whether the packages that everything stands on can be imported, and torch and torchaudio are a pair."""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from asr_lora.doctor.check import FAIL, OK, Check
from asr_lora.runtime.errors import reason

NAME = "versions"
COMPILED = ("torch", "torchaudio", "transformers", "peft", "bitsandbytes", "soundfile")
AGAIN = "install what uv.lock has: uv sync --inexact --locked"


def check() -> Check:
    """Imports them: to be called before anything of ours that does, where a broken one would be a traceback."""
    versions = {}
    for name in COMPILED:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            return Check(NAME, FAIL, f"{name} is not installed", AGAIN)
    if not paired(versions["torch"], versions["torchaudio"]):
        pair = f"torchaudio {versions['torchaudio']} is not made for torch {versions['torch']}"
        return Check(NAME, FAIL, pair, f"{AGAIN}; torch and torchaudio must be of one release and one build")
    for name in COMPILED:
        try:
            import_module(name)
        except (ImportError, OSError, RuntimeError, AttributeError) as error:  # whatever a wrong library makes of it
            return Check(NAME, FAIL, f"{name} {versions[name]} cannot be imported: {reason(error)}", AGAIN)
    return Check(NAME, OK, ", ".join(f"{name} {number}" for name, number in versions.items()))


def paired(torch: str, torchaudio: str) -> bool:
    """Whether they are of one release (2.11), and of one build (+cpu, +cu130) where both say which."""
    (one, _, one_build), (other, _, other_build) = torch.partition("+"), torchaudio.partition("+")
    alike = one_build == other_build or not (one_build and other_build)
    return one.split(".")[:2] == other.split(".")[:2] and alike
