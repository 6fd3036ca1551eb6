"""Lane messages to a stage model on this Triton, through BLS.

Each call has exactly one response, which carries the final flag: a response iterator that has to wait for a further
one while other calls start deadlocks Triton's Python backend.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import msgspec

from tandem.api.tensors import bytes_tensor
from tandem.errors import TandemError
from tandem.keys import Keys
from tandem.lanes.seal import seal
from tandem.messages import LaneReply, LaneRequest, decoder, encode

KEEP_S = 5.0


class BlsTransport:
    """Calls the stage model ``model_name``. ``pb_utils`` is Triton's Python backend module."""

    def __init__(self, model_name: str, pb_utils: Any, keys: Keys) -> None:
        self._model_name = model_name
        self._keys = keys
        self._pb = pb_utils
        self._kept: deque[tuple[float, Any, Any]] = deque()
        self._lock = threading.Lock()
        self._decoder: msgspec.msgpack.Decoder[LaneReply] = decoder(LaneReply)

    def call(self, request: LaneRequest) -> LaneReply:
        """Send one lane message and wait for its one reply (see ``Transport``)."""
        data = seal(encode(request), self._model_name, self._keys)
        inference = self._pb.InferenceRequest(
            model_name=self._model_name,
            requested_output_names=["lane_reply"],
            inputs=[self._pb.Tensor("lane_request", bytes_tensor(data))],
        )
        try:
            responses = inference.exec(decoupled=True)
            response = next(iter(responses))
        except (self._pb.TritonModelException, StopIteration) as error:
            raise TandemError("worker_lost", f"worker {self._model_name} does not answer: {error}") from error
        self._keep(responses, response)
        if response.has_error():
            raise TandemError("worker_lost", f"worker {self._model_name}: {response.error().message()}")
        reply = self._pb.get_output_tensor_by_name(response, "lane_reply")
        return self._decoder.decode(reply.as_numpy().tobytes())

    def close(self) -> None:
        """Nothing is held open between calls."""

    def _keep(self, responses: Any, response: Any) -> None:
        """Hold a response for a while after its use.

        A thread of Triton's forgets the call some time after it has ended. Were its reference the last one, that thread
        would free Python objects without the GIL and corrupt the heap (Triton 2.51, ``~PbTensor``; mended in 2.53).
        """
        now = time.monotonic()
        with self._lock:
            self._kept.append((now, responses, response))
            while self._kept[0][0] < now - KEEP_S:
                self._kept.popleft()
