"""``LLM`` for built engines: up to 1.2."""

from tensorrt_llm._llm import LLM as _Base
from tensorrt_llm._settings import version

if version() != "1.2":
    raise ModuleNotFoundError("No module named 'tensorrt_llm._tensorrt_engine'")


class LLM(_Base):
    """One built engine, from its directory."""

    is_pytorch = False

    def _refuse_unknown(self, settings: dict[str, object]) -> None:
        super()._refuse_unknown(settings)
        cache = settings.get("kv_cache_config")
        if cache is not None and getattr(cache, "dtype", "auto") != "auto":
            raise ValueError("KvCacheConfig.dtype is not supported by the TensorRT backend.")


__all__ = ["LLM"]
