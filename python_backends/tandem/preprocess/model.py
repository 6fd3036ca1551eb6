"""The ``preprocess`` model: prompts to token ids, for the ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb_utils

from tandem.api.ask import read_ask
from tandem.api.tensors import ids_tensor, take_bool
from tandem.deployment import load_deployment
from tandem.errors import TandemError
from tandem.logs import start_logging
from tandem.orchestrator.prompt import read_prompt
from tandem.text.codec import TextCodec
from tandem.triton.adapter import (
    deployment_file,
    read_name_and_parameters,
    read_tensors,
    to_error,
    to_response,
)


class PreprocessModel:
    """What Triton loads as ``preprocess``; several instances work side by side."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the tokenizer."""
        deployment = load_deployment(deployment_file(args))
        start_logging(deployment.logging, worker="preprocess")
        self._codec = TextCodec(Path(deployment.model.path))
        self._max_model_len = deployment.model.max_model_len or self._codec.max_model_len

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request: its token ids, or an error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            tensors = read_tensors(request)
            if take_bool(tensors, "stop"):
                return to_response({"input_ids": ids_tensor([0])})  # a cancellation has no prompt
            request_id, _ = read_name_and_parameters(request)
            ask = read_ask(request_id, tensors, "")
            return to_response({"input_ids": ids_tensor(read_prompt(ask, self._codec, self._max_model_len))})
        except TandemError as error:
            return to_error(error)
        except Exception as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"internal error: {error!r}"))
