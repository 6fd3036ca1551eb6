"""``LLM`` for built engines: up to 1.2."""

from typing import Any

from tensorrt_llm._llm import LLM as _Base
from tensorrt_llm._settings import version


class _BuiltEngineLLM(_Base):
    """One built engine, from its directory."""

    is_pytorch = False

    def _refuse_unknown(self, settings: dict[str, object]) -> None:
        super()._refuse_unknown(settings)
        cache = settings.get("kv_cache_config")
        if cache is not None and getattr(cache, "dtype", "auto") != "auto":
            raise ValueError("KvCacheConfig.dtype is not supported by the TensorRT backend.")


def __getattr__(name: str) -> Any:
    if name == "LLM" and version() == "1.2":
        return _BuiltEngineLLM
    raise AttributeError(f"module 'tensorrt_llm._tensorrt_engine' has no attribute '{name}'")
