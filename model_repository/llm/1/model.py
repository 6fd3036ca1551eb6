"""The orchestrator, as Triton loads it."""

from tandem.orchestrator.model import OrchestratorModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
