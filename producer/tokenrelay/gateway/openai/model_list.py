"""The models that live workers serve, and their training traces."""

from typing import Final

from fastapi import APIRouter
from starlette.responses import Response

from tokenrelay.gateway.core.dependencies import GatewayDep, TenantDep
from tokenrelay.gateway.core.schemas import ERRORS, Model, ModelList
from tokenrelay.gateway.http.problems import Problem, json_response, model_not_found
from tokenrelay.gateway.records.served_models import ServedModel, training

CONTEXT_FIELDS: Final = ("max_model_len", "context_length", "context_window", "max_context_length")
"""The context length's name in vLLM, OpenRouter, Groq and Mistral."""
router: Final = APIRouter(tags=["models"])


def description(model: ServedModel) -> dict[str, object]:
    """The model in OpenAI's shape, with its context length under each name that clients read."""
    has_trace = training(model) is not None
    return {
        "id": model.name,
        "object": "model",
        "created": model.since,
        "owned_by": "tokenrelay",
        "training": has_trace,
        **dict.fromkeys(CONTEXT_FIELDS, model.context_tokens),
        "wire": model.wire,
        "capabilities": sorted(model.capabilities),
    }


@router.head("/v1/models", include_in_schema=False)
@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def models(gateway: GatewayDep, _: TenantDep) -> Response:
    """List the models that live workers serve."""
    found = await gateway.models.served()
    return json_response({"object": "list", "data": [description(model) for model in found.values()]})


@router.get("/v1/models/{model:path}", response_model=Model, responses=ERRORS)
async def model_of(gateway: GatewayDep, _: TenantDep, model: str) -> Response:
    """One model."""
    return json_response(description(_find(await gateway.models.served(), model)))


@router.get("/models/{model:path}/training", responses=ERRORS)
async def training_of(gateway: GatewayDep, _: TenantDep, model: str) -> Response:
    """The model's training trace, epoch by epoch, as published by its worker."""
    trace = training(_find(await gateway.models.served(), model))
    if trace is None:
        raise Problem(404, f"the model {model!r} has no training trace", "no_training", "model")
    return json_response(trace)


def _find(found: dict[str, ServedModel], name: str) -> ServedModel:
    if name not in found:
        raise model_not_found(name, found)
    return found[name]
