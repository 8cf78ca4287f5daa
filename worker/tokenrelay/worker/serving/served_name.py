"""The name under which a worker's model is requested. Loads no torch: the supervisor needs it too."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from tokenrelay.shared.errors import SettingsError
from tokenrelay.shared.wire import keys

if TYPE_CHECKING:
    from tokenrelay.shared.settings import WorkerSettings

BUNDLED_NAME: Final = "weather"


def served_name(settings: WorkerSettings) -> str:
    """The name that requests give for the model. Raises SettingsError where the folder's name is no valid one."""
    if settings.served_model is not None:
        name = settings.served_model
    elif settings.model_path is None:
        name = BUNDLED_NAME
    else:
        path = Path(settings.model_path)
        if not path.is_dir() and (path.is_absolute() or settings.model_path.startswith((".", "~"))):
            raise SettingsError(f"model_path: there is no model folder {settings.model_path}")
        name = path.resolve().name if path.is_dir() else settings.model_path
    if not keys.is_model_name(name):
        raise SettingsError(f"served_model: {name!r} can't name a queue; give --served-model such as my-model")
    return name
