"""What the user named -> the folder of a checkpoint. Torch-free."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from qwell.runtime.checkpoint.json_object import read_json_object
from qwell.runtime.demo_model import DEMO_MODEL_NAME, demo_model_dir
from qwell.runtime.errors import CheckpointError, DownloadError

logger = logging.getLogger(__name__)

# What qwell reads. No code, no other weight formats; files in subfolders never match.
SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "*.tiktoken",
)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)


def resolve_model(model: str | None) -> Path:
    """The folder of a model.

    Args:
        model: an existing folder; else a hub id `owner/name`, whose needed files are fetched
            into the hub's cache (HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE apply); None is the
            demo model, made on first use.

    Raises:
        CheckpointError: neither a folder nor an id, or a repository without safetensors.
        DownloadError: the files could not be fetched.
    """
    if model is None:
        logger.info(
            "No model was named: taking the demo model %s, a small stand-in and not a Qwen "
            "model. Name your own with --model DIR or --model Qwen/Qwen3-0.6B",
            DEMO_MODEL_NAME,
        )
        return demo_model_dir()
    if not model:
        raise CheckpointError("the model's name is empty; name a folder or an id owner/name")
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"{model} is a file; name the folder that holds config.json")
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"there is no folder {model!r}, and it is no model id of the form owner/name"
        )
    return _from_hub(model)


def _from_hub(repo_id: str) -> Path:
    folder = _snapshot(repo_id, [*SMALL_FILES, WEIGHTS, INDEX], revision=None)
    if not (folder / WEIGHTS).exists() and (folder / INDEX).exists():
        # The commit that the index came from, so that its shards come from the same one.
        _snapshot(repo_id, _shards(folder / INDEX), revision=folder.name)
    elif not (folder / WEIGHTS).exists():
        raise CheckpointError(
            f"the repository {repo_id} holds neither {WEIGHTS} nor {INDEX}; "
            "qwell loads safetensors only"
        )
    return folder


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    weight_map = read_json_object(index).get("weight_map")
    names = list(weight_map.values()) if isinstance(weight_map, dict) else []
    strange = [name for name in names if not (isinstance(name, str) and _SHARD.fullmatch(name))]
    if strange or not names:
        found = repr(strange[0]) if strange else "none"
        raise CheckpointError(
            f"{index}: weight_map must place every tensor in a .safetensors file, found {found}"
        )
    return sorted(set(names))


def _snapshot(repo_id: str, patterns: list[str], revision: str | None) -> Path:
    # Imported here: it takes as long as the rest of the command line, and a folder needs none.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    where = f"{repo_id} at {constants.ENDPOINT}"
    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]
        )
    except HFValidationError as error:
        raise CheckpointError(
            f"there is no folder {repo_id!r}, and it is no id: {error}"
        ) from error
    except GatedRepoError as error:
        raise DownloadError(
            f"access to {where} is restricted: accept its terms there and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(
            f"there is no folder {repo_id!r} here and no repository {where}; check the name, "
            "or set HF_TOKEN if it is private"
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            advice = "HF_HUB_OFFLINE is set: unset it to fetch them"
        else:
            reason = _first_line(error.__cause__ or error)
            advice = f"{constants.ENDPOINT} did not give them ({reason}): try again"
        raise DownloadError(
            f"not all files of {repo_id} are in the cache {constants.HF_HUB_CACHE}, and {advice}, "
            "or name a folder with --model DIR"
        ) from error
    # HTTPError is the base of every failure of the HTTP client that the hub's library uses.
    except (HTTPError, OSError) as error:
        raise DownloadError(f"could not fetch {where}: {_first_line(error)}; try again") from error
    return Path(folder)


def _first_line(error: BaseException) -> str:
    """An error of the HTTP client without the links that follow; some have no text at all."""
    return (str(error).splitlines() or [repr(error)])[0]
