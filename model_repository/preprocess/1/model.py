"""Template and tokens, as Triton loads them."""

from tandem.preprocess.model import PreprocessModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
