"""Worker nodes: registering them, and the port under which they join. With API keys, for `admin` keys only."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from lattice.api.access import operators_only
from lattice.api.dependencies import Service
from lattice.api.errors import refusals
from lattice.api.models.schemas import (
    ConnectWorkerRequest,
    ConnectWorkerResponse,
    DisconnectWorkerRequest,
    GetRayPortResponse,
    StatusResponse,
    WorkersResponse,
)
from lattice.api.requests import JSONRoute
from lattice.ids import NodeId

# The cluster is the operator's, not a tenant's.
router = APIRouter(tags=["worker"], route_class=JSONRoute, dependencies=[Depends(operators_only)])


@router.post("/connect_worker", responses=refusals(400))
async def connect_worker(request: ConnectWorkerRequest, service: Service) -> ConnectWorkerResponse:
    """Registers a node. One that the cluster does not know yet waits until it joins."""
    await service.connect_worker(NodeId(request.node_id), request.node_ip, request.resources)
    return ConnectWorkerResponse()


@router.post("/disconnect_worker", responses=refusals(404))
async def disconnect_worker(request: DisconnectWorkerRequest, service: Service) -> StatusResponse:
    """Lets a node finish what it runs and places nothing new on it.

    With `leaving` it is forgotten once the cluster does not have it.
    """
    await service.disconnect_worker(NodeId(request.node_id), leaving=request.leaving)
    return StatusResponse()


@router.post("/get_head_ray_port")
async def get_head_ray_port(service: Service) -> GetRayPortResponse:
    """The port of the cluster's head, which `ray start --address` needs. The request has no body."""
    return GetRayPortResponse(port=await service.head_port())


@router.get("/workers")
async def list_workers(service: Service) -> WorkersResponse:
    """Registered workers, and nodes of the cluster that nobody registered."""
    return WorkersResponse(workers=await service.workers())
