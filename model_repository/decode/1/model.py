"""A stage, as Triton loads it."""

from tandem.stage.model import StageModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
