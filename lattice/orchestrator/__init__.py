"""The imperative shell around the run machine: owns workflows, runs, their log and their subscribers."""

from lattice.orchestrator.orchestrator import Orchestrator
from lattice.orchestrator.parts import Surroundings
from lattice.orchestrator.policies import Defaults, Limits, Retention, Tenancy

__all__ = ["Defaults", "Limits", "Orchestrator", "Retention", "Surroundings", "Tenancy"]
