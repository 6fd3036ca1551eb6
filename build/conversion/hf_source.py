"""A local directory in Hugging Face form: config.json, safetensors (in one file or in shards), tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from conversion.safetensors_file import read_tensors
from conversion.source import TensorSpec, refuse
from tandem.engines.torch.config import read_config

_ABOUT_THE_FILE = ("_name_or_path", "transformers_version")
"""Entries of config.json that say nothing about the model; without them copies of one model stay equal."""


class HfSource:
    """Opens the directory. Weights keep their dtype and their bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        raw = _read_json(path / "config.json")
        try:
            read_config(path)  # refuses what no engine could run
        except (TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
            raise refuse(path / "config.json", f"a field has a value of the wrong kind ({error})") from error
        if quantization := raw.get("quantization_config"):
            method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
            raise refuse(
                path / "config.json",
                f"quantization_config is {method!r}; supported are plain weights (float32, bfloat16, float16)",
            )
        self.config = {key: value for key, value in raw.items() if key not in _ABOUT_THE_FILE}
        self._tokenizer = _read_tokenizer(path / "tokenizer.json")
        largest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
        if largest >= self.config["vocab_size"]:
            raise refuse(
                path / "tokenizer.json",
                f"it has token id {largest}, but vocab_size in config.json is {self.config['vocab_size']}",
            )
        self._tokenizer_config = _read_optional(path / "tokenizer_config.json")
        self.generation_config = self._read_generation_config()

    def tensors(self) -> list[TensorSpec]:
        """All tensors of all shards."""
        specs: dict[str, TensorSpec] = {}
        for path in self._weight_files():
            for spec in read_tensors(path):
                if spec.name in specs:
                    raise refuse(path, f"tensor {spec.name} is in another file too")
                specs[spec.name] = spec
        return list(specs.values())

    def write_tokenizer(self, out: Path) -> None:
        """Copy the tokenizer; the chat template moves into tokenizer_config.json, wherever it was."""
        shutil.copyfile(self._path / "tokenizer.json", out / "tokenizer.json")
        config = self._tokenizer_config | ({"chat_template": template} if (template := self._read_template()) else {})
        (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")

    def _weight_files(self) -> list[Path]:
        index, whole = self._path / "model.safetensors.index.json", self._path / "model.safetensors"
        if index.is_file():
            names = _read_json(index).get("weight_map")
            if not isinstance(names, dict) or not all(Path(str(name)).name == name for name in names.values()):
                raise refuse(index, "weight_map must give the file of every tensor, in this directory")
            return [self._path / name for name in sorted(set(names.values()))]
        if whole.is_file():
            return [whole]
        raise refuse(
            self._path,
            "neither model.safetensors nor model.safetensors.index.json is there; older *.bin weights are written anew "
            "by transformers: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR)",
        )

    def _read_generation_config(self) -> dict[str, Any]:
        """generation_config.json; answers also end where the tokenizer's own end of sequence says so."""
        found = _read_optional(self._path / "generation_config.json")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if found.get(name) is None and self.config.get(name) is not None:
                found[name] = self.config[name]
        ids = found.get("eos_token_id")
        eos_ids = set(ids if isinstance(ids, list) else [] if ids is None else [ids])
        token = self._tokenizer_config.get("eos_token")
        text = token.get("content") if isinstance(token, dict) else token
        if text is not None and (token_id := self._tokenizer.token_to_id(text)) is not None:
            eos_ids.add(token_id)
        found = {key: value for key, value in found.items() if key not in _ABOUT_THE_FILE}
        return found | {"eos_token_id": sorted(eos_ids)}

    def _read_template(self) -> str | None:
        """The chat template: a file of its own (newer), or part of the tokenizer's configuration."""
        file = self._path / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        template = self._tokenizer_config.get("chat_template")
        if isinstance(template, list):  # named ones; the one for plain chat is called default
            template = {entry.get("name"): entry.get("template") for entry in template}.get("default")
        if template is not None and not isinstance(template, str):
            raise refuse(self._path / "tokenizer_config.json", "chat_template must be a text")
        return template


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise refuse(path, f"cannot be read as JSON ({error})") from error
    if not isinstance(found, dict):
        raise refuse(path, "must hold a JSON object")
    return found


def _read_optional(path: Path) -> dict[str, Any]:
    return _read_json(path) if path.is_file() else {}


def _read_tokenizer(path: Path) -> Tokenizer:
    if not path.is_file():
        raise refuse(
            path,
            "missing; where there is only a tokenizer.model, transformers writes it: "
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise refuse(path, f"not a tokenizer ({error})") from error
