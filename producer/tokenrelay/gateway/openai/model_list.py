"""Which models live workers serve, and how those were trained."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from tokenrelay.gateway.core.asking import Asking, Here
from tokenrelay.gateway.core.schemas import ERRORS, Model, ModelList
from tokenrelay.gateway.http.problems import Problem
from tokenrelay.gateway.http.replies import json_response
from tokenrelay.gateway.records.models import Served, training

CONTEXT_FIELDS: Final = ("max_model_len", "context_length", "context_window", "max_context_length")
"""vLLM's name, OpenRouter's, Groq's and Mistral's."""
router: Final = APIRouter(tags=["models"])


def described(model: Served) -> dict[str, object]:
    """The model in OpenAI's shape, with its context under each name that clients look for.

    `training`: whether its training trace is known.
    """
    has_trace = training(model) is not None
    return {
        "id": model.name,
        "object": "model",
        "created": model.since,
        "owned_by": "tokenrelay",
        "training": has_trace,
        **dict.fromkeys(CONTEXT_FIELDS, model.context_tokens),
    }


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def models(gateway: Here, _: Asking) -> Response:
    """What live workers serve."""
    found = await gateway.models.served()
    return json_response({"object": "list", "data": [described(model) for model in found.values()]})


@router.get("/v1/models/{model:path}", response_model=Model, responses=ERRORS)
async def model_of(gateway: Here, _: Asking, model: str) -> Response:
    """One of them."""
    return json_response(described(_served(await gateway.models.served(), model)))


@router.get("/models/{model:path}/training", responses=ERRORS)
async def training_of(gateway: Here, _: Asking, model: str) -> Response:
    """The model's training trace, epoch by epoch, as its worker published it."""
    trace = training(_served(await gateway.models.served(), model))
    if trace is None:
        raise Problem(404, f"the model {model!r} came without a training trace", "no_training", "model")
    return json_response(trace)


def _served(found: dict[str, Served], name: str) -> Served:
    if name not in found:
        live = ", ".join(found) or "none"
        raise Problem(404, f"no live worker serves the model {name!r}; served are: {live}", "model_not_found", "model")
    return found[name]
