"""What of a checkpoint's configuration is understood, and how the rest is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tandem.engines.torch.checkpoint import Checkpoint, read_fingerprint
from tandem.engines.torch.config import Llama3Rope, read_config
from tandem.engines.torch.sharding import Shard
from tandem.errors import TandemError
from tandem.messages import Partition
from tests.unit.engines.torch.support import make_model, make_runner

PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
}


def write(directory: Path, **changes: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(PLAIN | changes))
    return directory


def test_plain(tmp_path: Path) -> None:
    config = read_config(write(tmp_path))
    assert (config.head_dim, config.group_size, config.rope_theta) == (16, 2, 5000.0)
    assert config.rope_scaling is None
    assert not config.tied_embeddings
    assert config.kv_bytes_per_token(2) == 2 * 2 * 2 * 16 * 2


def test_rope_of_old_and_new_files(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    }
    expected = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=128)
    old = read_config(write(tmp_path, rope_scaling=scaling))
    assert (old.rope_theta, old.rope_scaling) == (5000.0, expected)
    new = read_config(write(tmp_path, rope_theta=None, rope_parameters=scaling | {"rope_theta": 7.0}))
    assert (new.rope_theta, new.rope_scaling) == (7.0, expected)


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, model_type="mistral", sliding_window=128)).context == 128
    assert read_config(write(tmp_path, model_type="mistral", sliding_window=None)).context == 512
    assert read_config(write(tmp_path, model_type="qwen2", sliding_window=128, use_sliding_window=False)).context == 512


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mixtral"}, "model_type is 'mixtral'; this engine supports llama, mistral, qwen2, qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; this engine supports silu"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TandemError, match=r"config\.json: ") as caught:
        read_config(write(tmp_path, **changes))
    assert message in caught.value.message
    assert caught.value.code == "invalid_request"


def test_missing_fields_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match=r"cannot read .*config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TandemError, match="the field 'num_attention_heads' is missing"):
        read_config(tmp_path)
    with pytest.raises(TandemError, match=r"tandem\.json.*build/convert\.py"):
        read_fingerprint(tmp_path)
    with pytest.raises(TandemError, match=r"no \*\.safetensors"):
        Checkpoint(tmp_path, Shard(read_config(write(tmp_path)), Partition(), 0), torch.float32, torch.device("cpu"))


def test_tensors_must_fit_the_configuration(tmp_path: Path) -> None:
    model_dir = make_model("llama", tmp_path)
    path = model_dir / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"intermediate_size": 100}))
    with pytest.raises(TandemError, match=r"gate_proj.weight has shape \[96, 72\]; config.json asks for \[100, 72\]"):
        make_runner(model_dir)
    path.write_text(json.dumps(raw | {"num_hidden_layers": 4}))
    with pytest.raises(TandemError, match=r"lacks the tensor model\.layers\.3\."):
        make_runner(model_dir)


def test_limits_of_a_deployment_are_checked(tmp_path: Path) -> None:
    model_dir = make_model("llama", tmp_path)
    with pytest.raises(TandemError, match=r"worker\.kv_memory: 1024 bytes hold no KV block"):
        make_runner(model_dir, kv_memory="1KiB")
    if not torch.cuda.is_available():
        with pytest.raises(TandemError, match=r"worker\.devices: 'cuda', but torch sees no CUDA device"):
            make_runner(model_dir, devices=["cuda"])
