"""A folder for caches where the user id has no home: `docker run --user`, OpenShift.

Libraries look up the user's name and home on import, so `provide_home` runs before them: asr_lora/__init__.py calls it,
and the command line (asr_lora/runs/launch.py) logs what it returned.
"""

import getpass
import os
import tempfile
from pathlib import Path

WAY_OUT = "name a folder for caches in ASR_LORA_CACHE, or set HOME"


def provide_home() -> str | None:
    """Ensures that libraries find a user name and a cache folder.

    Returns a log line where it had to provide them.
    Sets environment variables, for child processes too, and none that is set already: USER, and HOME where no home is
    known, or the XDG_*_HOME where there is one that cannot be written and holds no cache yet. The folder is that of
    ASR_LORA_CACHE, XDG_CACHE_HOME, or asr_lora-<uid> in the temporary folder.
    Raises SystemExit, with one line, where that folder belongs to another user or others may write to it.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter as of Python 3.13
        os.environ["USER"] = str(os.getuid())
    try:
        home = Path.home()
    except RuntimeError:
        home = None
    if home and _holds_caches(home):
        return None
    place = os.environ.get("ASR_LORA_CACHE") or os.environ.get("XDG_CACHE_HOME") or str(_temporary())
    if home is None:
        os.environ["HOME"] = str(Path(place).absolute())
    else:
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TRITON_HOME"):
            os.environ.setdefault(name, str(Path(place).absolute()))
    lacking = "not set, and the user id has no passwd entry" if home is None else f"{home} cannot be written"
    return f"HOME: {lacking}; caches are kept in {place} (ASR_LORA_CACHE names another folder)"


def _holds_caches(home: Path) -> bool:
    """Returns whether a cache exists or can be made.

    An existing one that cannot be written may still be read.
    """
    return os.path.exists(home / ".cache") or os.access(home, os.W_OK | os.X_OK)  # noqa: PTH110 (no error if forbidden)


def _temporary() -> Path:
    """Returns the user's own folder in the temporary one.

    Another user may have made one of that name before.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"asr_lora-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise SystemExit(
            f"error: HOME: none that can be written, nor a temporary folder ({error}); {WAY_OUT}"
        ) from error
    if folder.is_symlink() or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise SystemExit(f"error: HOME: none that can be written, and {folder} is not this user's alone; {WAY_OUT}")
    return folder
