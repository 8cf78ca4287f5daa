"""What of a stored request is shown, whatever its wire version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, cast

from pydantic import AfterValidator, ConfigDict, JsonValue, TypeAdapter, ValidationError, WrapValidator
from typing_extensions import TypedDict

from tokenrelay.shared.options import DEFAULTS
from tokenrelay.shared.request_errors import request_error
from tokenrelay.shared.request_fields import model_name
from tokenrelay.shared.response_format import STORED, ResponseFormat

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenrelay.shared.options import StoredRequest


def _if_known(value: Any, validated: Callable[[Any], Any]) -> Any:
    """The validated value; None for what only a later release knows."""
    try:
        return validated(value)
    except ValidationError:
        return None


class _Glance(TypedDict, total=False):
    """What of a request is shown whatever its version."""

    __pydantic_config__ = ConfigDict(extra="ignore", strict=True)  # type: ignore[misc]

    prompt: str | None
    echo: Annotated[bool | None, WrapValidator(_if_known)]
    prompt_logprobs: Annotated[int | None, WrapValidator(_if_known)]
    model: Annotated[str, AfterValidator(model_name)]
    messages: list[dict[str, JsonValue]] | None
    max_new_tokens: int | None
    temperature: float
    top_p: float
    top_logprobs: int
    response_format: Annotated[ResponseFormat | None, WrapValidator(_if_known)]
    metadata: dict[str, JsonValue]
    choices: int
    choice: int


_GLANCE: Final = TypeAdapter(_Glance)


def glance(raw: str | bytes) -> StoredRequest:
    """What is shown of a request of any wire version, absent fields with their defaults. Raises RequestError."""
    try:
        seen = _GLANCE.validate_json(raw, context=STORED)
    except ValidationError as error:
        raise request_error(error, DEFAULTS) from None
    return cast("StoredRequest", {**DEFAULTS, **seen})
