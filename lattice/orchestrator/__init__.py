"""The imperative shell around the run machine: owns workflows, runs, their log and their subscribers."""

from lattice.orchestrator.orchestrator import Limits, Orchestrator

__all__ = ["Limits", "Orchestrator"]
