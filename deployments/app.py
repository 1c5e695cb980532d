"""Builds the Serve application: the composition root of the service.

`serve run configs/lattice.yaml` calls `build` with the settings that the file gives as `args`. The
module has no postponed annotations, as Serve reads the type of `build`'s argument.
"""

from typing import cast

from ray.serve import Application, Deployment

from deployments.ingress import IngressDeployment
from deployments.orchestrator import OrchestratorDeployment
from lattice.settings import LatticeSettings


def build(settings: LatticeSettings) -> Application:
    """The ingress in front of one orchestrator."""
    orchestrator = cast(Deployment, OrchestratorDeployment).bind(settings)
    ingress = IngressDeployment.options(num_replicas=settings.ingress_replicas)
    return ingress.bind(settings, orchestrator)
