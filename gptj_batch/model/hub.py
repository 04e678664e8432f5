"""Where a model's folder is: on disk, in the package (`demo`), or fetched from the Hugging Face hub."""

import re
from pathlib import Path
from typing import Final

from gptj_batch.errors import CheckpointError

# Never fetched: other frameworks' weights. Pickles are fetched only where a repository has nothing else.
SMALL_FILES: Final = ["*.json", "merges.txt", "vocab.txt"]
HUB_NAME: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_folder(path: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a model given as a folder or a hub name such as `EleutherAI/gpt-j-6B`.

    An existing folder wins. Raises CheckpointError where there is neither.
    """
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(f"model path {folder} is a file; give the folder that holds config.json and the weights")
    if not HUB_NAME.fullmatch(str(path)):
        raise CheckpointError(f"model path {str(path)!r} is neither a folder nor a hub name of the form owner/model")
    return _download(str(path), revision)


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        try:
            files = HfApi().list_repo_files(name, revision=revision)
            has_safetensors = any(file.endswith(".safetensors") for file in files)
            patterns = [*SMALL_FILES, "*.safetensors" if has_safetensors else "pytorch_model*.bin"]
        except (OfflineModeIsEnabled, OSError):
            patterns = None  # no network: whatever an earlier download left in the cache
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no details'}"
        wanted = name if revision is None else f"{name} (revision {revision})"
        raise CheckpointError(
            f"model {wanted} is no folder here and could not be fetched from the hub ({reason}); "
            "give a local folder, or make the hub reachable"
        ) from None
