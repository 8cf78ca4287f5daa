"""A model's folder: finding it, and checking that it holds what any engine needs. Owns the errors about it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from tokenrelay.worker.engine.contract import ModelError
from tokenrelay.worker.engine.model_files.fingerprint import MODEL_FILES

log = logging.getLogger(__name__)


def find_folder(name_or_folder: str | Path, *, trust_remote_code: bool = False) -> Path:
    """The folder itself, or the local snapshot of a Hub name. Raises ModelError for neither."""
    folder = Path(name_or_folder)
    if folder.is_dir():
        return folder
    name = str(name_or_folder)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelError(f"there is no model folder {name}")
    patterns = [*MODEL_FILES, "*.py"] if trust_remote_code else list(MODEL_FILES)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except HFValidationError as error:
        raise ModelError(f"{name!r} is neither a folder nor a Hub name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"{name!r} is no folder, and the Hugging Face Hub doesn't give it ({type(error).__name__}): check the "
            "name, HF_TOKEN for a gated model, and that this host reaches the Hub or has the model in its cache"
        ) from error


def check_folder(folder: Path) -> None:
    """Raises ModelError for a folder that is no model's, or has no safetensors: other weights are pickles."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no model folder: it has no config.json{_instead(folder)}")
    generation = folder / "generation_config.json"
    try:
        readable = not generation.is_file() or isinstance(json.loads(generation.read_text("utf-8")), dict)
    except (OSError, ValueError, RecursionError):
        readable = False
    if not readable:  # transformers would go on without it, and without the end tokens that it names
        raise ModelError(f"{generation} isn't a JSON object")
    if (folder / "adapter_config.json").is_file():
        log.warning("the PEFT adapter in %s isn't applied: merge it into the model (merge_and_unload)", folder)
    if not any(folder.glob("*.safetensors")):
        others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(pattern))
        found = f", only {', '.join(others[:3])}" if others else ""
        raise ModelError(
            f"{folder} has no *.safetensors{found}: other weight files aren't loaded, they can run code. "
            "Save it with save_pretrained() of transformers to convert it"
        )


def _instead(folder: Path) -> str:
    """What a folder without a configuration holds, where that is known."""
    if (folder / "adapter_config.json").is_file():
        return ", but a PEFT adapter's: merge it into its base model (merge_and_unload) and save that"
    if any(folder.glob("*.gguf")):
        return ", but GGUF files, which aren't loaded: take the model's folder of safetensors"
    return ""
