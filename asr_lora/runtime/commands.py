"""The commands that messages advise: of make in a checkout, of `asr-lora` where the package is installed."""

import json
import shlex
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]  # where the package lies in one
VARIABLES = {  # of make, by setting
    "data.language": "LANG", "data.hours": "HOURS", "data.source": "DATA", "audio": "AUDIO", "report.runs": "RUNS",
}  # fmt: skip


def to_install(extra: str) -> str:
    """Returns the way out where an optional dependency is absent: the command for this checkout, uv tool or package.

    Without --inexact uv would remove other extras.
    """
    if is_checkout():
        again = " && make torch" if (CHECKOUT / ".venv" / ".own-torch").exists() else ""  # uv.lock's would replace it
        return f"`uv sync --inexact --extra {extra}{again}` installs it"
    command = "uv tool install --force" if (Path(sys.prefix) / "uv-receipt.toml").is_file() else "pip install"
    return f"`{command} 'asr_lora[{extra}]{_origin()}'` installs it"


def to_fit_driver(torch: str) -> str:
    """Returns the command that puts the build of this torch (2.11.0+cu130) in place that the NVIDIA driver here takes.

    In a checkout `make torch`, because make installs what uv.lock pins.
    """
    if is_checkout():
        return "make torch"
    release = torch.partition("+")[0]
    return (
        f"uv pip install --python {sys.executable} --torch-backend=auto --reinstall-package torch "
        f"--reinstall-package torchaudio torch=={release} torchaudio=={release}"
    )


def to_run(stage: str, *overrides: str) -> str:
    """Returns what to type for a stage with overrides, `setting=value`, whose values need no quotes of Hydra's."""
    if not is_checkout():
        return shlex.join(["asr-lora", stage, *overrides])
    settings = dict(override.split("=", 1) for override in overrides)
    named = [f"{VARIABLES[key]}={shlex.quote(settings.pop(key))}" for key in list(settings) if key in VARIABLES]
    rest = [f"ARGS={shlex.quote(' '.join(f'{key}={value}' for key, value in settings.items()))}"] if settings else []
    return " ".join(["make", stage, *named, *rest])


def is_checkout() -> bool:
    """Whether the package lies in a checkout of the project, beside its uv.lock."""
    return (CHECKOUT / "uv.lock").is_file()


def _origin() -> str:
    """Returns ` @ ` and the address that the package was installed from (PEP 610), or nothing for a registry."""
    try:
        recorded = json.loads(distribution("asr_lora").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return ""
    version_control = f"{recorded['vcs_info']['vcs']}+" if "vcs_info" in recorded else ""
    return f" @ {version_control}{recorded['url']}" if "url" in recorded else ""
