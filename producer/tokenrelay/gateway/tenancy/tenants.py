"""API keys: who asks, and how much they may have running. Only hashes of keys are known here."""

from __future__ import annotations

import hashlib
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tokenrelay.gateway.http.problems import unauthorized
from tokenrelay.shared.errors import SettingsError

if TYPE_CHECKING:
    from tokenrelay.shared.settings import GatewaySettings

_PREFIX: Final = "tr-"


class ApiKey(BaseModel):
    """One key as the operator writes it down. `name` is whose requests are; it stays when a key is renewed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    max_concurrent: Annotated[int | None, Field(ge=1, le=10_000)] = None
    max_queued: Annotated[int | None, Field(ge=1, le=10_000)] = None


_KEYS: Final = TypeAdapter(list[ApiKey])


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who asks. `owner` is None where there are no keys: then anybody may see any request whose ID they have."""

    owner: str | None
    max_concurrent: int
    max_queued: int


class Tenants:
    """All that may ask; everybody, without limits of their own, where no keys are set."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises SettingsError for keys that can't be read."""
        self._settings = settings
        self._by_hash = {key.sha256: key for key in _configured(settings)}

    @property
    def required(self) -> bool:
        """Whether a key must be given."""
        return bool(self._by_hash)

    def tenant(self, key: str | None) -> Tenant:
        """Whose key it is. Raises Problem 401."""
        if not self.required:
            return Tenant(None, self._settings.key_max_concurrent, self._settings.key_max_queued)
        if not key:
            raise unauthorized("no API key was given: send it as Authorization: Bearer KEY")
        # The hash is looked up, not the key: how long that takes says nothing of keys.
        found = self._by_hash.get(hash_of(key))
        if found is None:
            raise unauthorized("this API key is unknown")
        return Tenant(
            found.name,
            found.max_concurrent or self._settings.key_max_concurrent,
            found.max_queued or self._settings.key_max_queued,
        )


def hash_of(key: str) -> str:
    """What is written down of a key."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def new_key(name: str) -> tuple[str, dict[str, str]]:
    """A fresh key of 256 random bits, and its line for the file. Raises SettingsError for what can't be a name."""
    key = _PREFIX + secrets.token_urlsafe(32)
    line = {"name": name, "sha256": hash_of(key)}
    _checked([line])
    return key, line


def _configured(settings: GatewaySettings) -> list[ApiKey]:
    if settings.api_keys is not None:
        return _checked(_decoded(settings.api_keys.get_secret_value()))
    if settings.api_keys_file is None:
        return []
    try:
        return _checked(_decoded(settings.api_keys_file.read_text("utf-8")))
    except OSError as error:
        raise SettingsError(f"TOKENRELAY_API_KEYS_FILE: {error}") from None


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"TOKENRELAY_API_KEYS: isn't JSON ({error})") from None


def _checked(raw: Any) -> list[ApiKey]:
    try:
        found = _KEYS.validate_python(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the list"
        raise SettingsError(f"TOKENRELAY_API_KEYS: {where}: {first['msg']}") from None
    if not found:
        raise SettingsError("TOKENRELAY_API_KEYS: holds no key; leave it out where anybody may ask")
    if len({key.sha256 for key in found}) < len(found):
        raise SettingsError("TOKENRELAY_API_KEYS: a sha256 stands in it twice")
    return found
