"""Builds the Serve application: the composition root of the service.

`serve run configs/lattice.yaml` calls `build` with the settings that the file gives as `args`. The
module has no postponed annotations, as Serve reads the type of `build`'s argument.
"""

from typing import cast

from ray.serve import Application, Deployment

from deployments.exposure import check_exposure
from deployments.ingress import IngressDeployment
from deployments.orchestrator import OrchestratorDeployment
from lattice.settings import LatticeSettings


def build(settings: LatticeSettings) -> Application:
    """The ingress in front of one orchestrator.

    Raises:
        InvalidRequestError: without API keys, it would be reached from other machines.
    """
    check_exposure(settings)
    orchestrator = cast(Deployment, OrchestratorDeployment).bind(settings)
    ingress = IngressDeployment.options(num_replicas=settings.ingress_replicas)
    return ingress.bind(settings, orchestrator)
