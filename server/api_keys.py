"""Where API keys come from: options, the environment, a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwell.server.errors import StartError

ENVIRONMENT_VARIABLE = "QWELL_API_KEY"

_SOUND_KEY = re.compile(r"[!-~]+")


def collect_api_keys(
    given: Sequence[str], environment: Mapping[str, str], file: Path | None
) -> tuple[str, ...]:
    """All keys, each once: those of options, of QWELL_API_KEY, and of `file`, one a line.

    Lines of the file that are empty or begin with # are skipped.

    Raises:
        StartError: a key that is empty or that no header can carry, a file that cannot be read or
            has no key. No message holds a key.
    """
    sources = {"--api-key": list(given)}
    if ENVIRONMENT_VARIABLE in environment:
        sources[ENVIRONMENT_VARIABLE] = [environment[ENVIRONMENT_VARIABLE]]
    if file is not None:
        sources[f"--api-key-file {file}"] = _keys_in(file)
    for source, keys in sources.items():
        for key in keys:
            if not _SOUND_KEY.fullmatch(key):
                raise StartError(
                    f"{source}: a key must be visible ASCII characters without blanks, and at "
                    "least one of them"
                )
    return tuple(dict.fromkeys(key for keys in sources.values() for key in keys))


def _keys_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"--api-key-file {file} cannot be read: {error}") from error
    keys = [line.strip() for line in lines]
    keys = [key for key in keys if key and not key.startswith("#")]
    if not keys:
        raise StartError(f"--api-key-file {file} holds no key; write one a line")
    return keys
