"""Answers as values: JSON, or instances of a pydantic model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from tokenrelay.shared.errors import GenerationError

if TYPE_CHECKING:
    from tokenrelay.shared.wire.answer import Answer


def model_of(response_format: object) -> type[BaseModel] | None:
    """The model that a caller gave as `response_format`, if it is one."""
    return response_format if isinstance(response_format, type) and issubclass(response_format, BaseModel) else None


def parse(answer: Answer, model: type[BaseModel] | None) -> Any:
    """The answer's text as an instance of the model, or as what its JSON says. Raises GenerationError where it is none,
    such as an answer that its token limit has cut off."""
    try:
        return json.loads(answer.text) if model is None else model.model_validate_json(answer.text)
    except (ValidationError, ValueError) as error:
        what = "JSON" if model is None else f"a {model.__name__}"
        reason = str(error).splitlines()[0]
        message = f"the answer isn't {what} ({reason}); it ended as {answer.finish_reason}"
        raise GenerationError(message, answer=answer) from error
