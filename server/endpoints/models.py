"""GET /v1/models and GET /v1/models/{id}."""

from __future__ import annotations

import time

from starlette.requests import Request

from qwell.server.errors import model_not_found
from qwell.server.json_body import JsonResponse
from qwell.server.protocol.models import ModelCard, ModelList, listed_ids
from qwell.server.service import Service


async def list_models(service: Service, _request: Request) -> JsonResponse:
    """All ids that may be asked for."""
    now = int(time.time())
    ids = listed_ids(service.served_model_names)
    return JsonResponse(ModelList(data=[ModelCard(id=model_id, created=now) for model_id in ids]))


async def show_model(service: Service, request: Request) -> JsonResponse:
    """One entry of the list, else 404."""
    model_id = request.path_params["model_id"]
    if model_id not in listed_ids(service.served_model_names):
        raise model_not_found(model_id)
    return JsonResponse(ModelCard(id=model_id, created=int(time.time())))
