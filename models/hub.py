"""Checkpoints of model repositories on the Hugging Face hub: `--model_source=hf:ORG/NAME[@REVISION]`.

Only model.safetensors is read: no code, no pickle. It is kept in the hub's own cache, so that later commands need no
network. Does not import torch.
"""

from __future__ import annotations

import re
from pathlib import Path

from foundations.errors import RunError, UsageError

WEIGHTS = "model.safetensors"
REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def weights_of(source: str) -> Path:
    """The path of the weights of ORG/NAME[@REVISION], fetched if they are not there yet, or of a folder that has them.

    Raises UsageError for what is no name of a repository, and RunError if the weights cannot be had.
    """
    folder = Path(source).expanduser()
    if source and folder.is_dir():
        if not (folder / WEIGHTS).is_file():
            raise RunError(f"--model_source=hf:{source}: expected {WEIGHTS} in that folder, there is none")
        return (folder / WEIGHTS).resolve()
    repository, at, revision = source.partition("@")
    if not REPOSITORY.fullmatch(repository) or (at and not revision):
        raise UsageError(f"--model_source: expected hf:ORG/NAME, hf:ORG/NAME@REVISION or hf:FOLDER, got hf:{source}")
    return _fetched(repository, revision or None)


def _fetched(repository: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    told = f"--model_source=hf:{repository}{f'@{revision}' if revision else ''}"
    try:
        return Path(hf_hub_download(repository, WEIGHTS, revision=revision))
    except LocalEntryNotFoundError as error:
        raise RunError(
            f"{told}: the hub cannot be reached and the weights are not in its cache ({_cause(error)}); fetch "
            f"{WEIGHTS} by hand and name it by --model_source=file:PATH"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise RunError(f"{told}: the hub has no such repository or revision, or it is private") from error
    except EntryNotFoundError as error:
        raise RunError(
            f"{told}: expected a repository with {WEIGHTS}; other formats can run code, none is read"
        ) from error
    except (OSError, ValueError) as error:
        raise RunError(f"{told}: cannot fetch {WEIGHTS}: {_cause(error)}") from error


def _cause(error: BaseException) -> str:
    first = error.__cause__ or error
    return " ".join(str(first).split())[:200] or type(first).__name__
