"""Requests that are wrong in every way there is: lane messages, KServe requests by gRPC, bodies by HTTP. Seeded.

What is made here is data alone; ``fuzz.py`` sends it.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from tritonclient.grpc import service_pb2

from tandem.messages import (
    Cancel,
    Decode,
    Generate,
    Hello,
    Pair,
    Poll,
    Prefill,
    Sampling,
    Stopping,
    Submit,
    WorkerInfo,
)

Kind = Literal["lane", "grpc", "grpc bytes", "infer", "generate", "generate_stream"]

NASTY_NUMBERS: list[Any] = [
    0, -1, 1, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, 2**63, 2**64 - 1, -(2**63), 1e308, -1e308, 5e-324, math.nan,
    math.inf, -math.inf, 0.5,
]  # fmt: skip
NASTY_VALUES: list[Any] = [
    *NASTY_NUMBERS, None, True, "", "x" * 70_000, "\x00", "\U0001f600" * 9, "../../etc/passwd", b"", b"\xff\xfe",
    [], {}, [[]], [None], [1, "2"], {"type": "hello"}, [-1] * 3, [10**6] * 3, [1] * 5000,
]  # fmt: skip
MODELS = ["llm", "llm", "llm", "prefill_0", "decode_0", "preprocess", "ensemble", "nobody", "", "llm/../llm"]
DATATYPES = {
    "BOOL": 1, "UINT8": 1, "INT8": 1, "UINT16": 2, "INT32": 4, "INT64": 8, "UINT64": 8, "FP16": 2, "FP32": 4, "FP64": 8,
    "BYTES": 0, "NONE": 1, "": 4,
}  # fmt: skip
INPUTS = {
    "text_input": "BYTES", "messages": "BYTES", "stop_words": "BYTES", "kv_handle": "BYTES", "input_ids": "INT32",
    "output_ids": "INT32", "stop_token_ids": "INT32", "max_tokens": "INT32", "min_tokens": "INT32", "top_k": "INT32",
    "top_logprobs": "INT32", "temperature": "FP32", "top_p": "FP32", "min_p": "FP32", "repetition_penalty": "FP32",
    "presence_penalty": "FP32", "frequency_penalty": "FP32", "timeout_s": "FP32", "seed": "UINT64", "stream": "BOOL",
    "stop": "BOOL", "ignore_eos": "BOOL", "return_log_probs": "BOOL", "explain": "BOOL", "lane_request": "UINT8",
    "exclude_input_in_output": "BOOL", "no_such_input": "INT32",
}  # fmt: skip

PROMPTS = {"text_input", "messages", "input_ids"}
LISTS = {"input_ids", "output_ids", "stop_token_ids", "stop_words", "lane_request"}


@dataclass(frozen=True)
class Malformed:
    """One request. ``body`` is a lane message, a serialised ModelInferRequest, or a body of HTTP."""

    kind: Kind
    model: str
    body: bytes
    header_length: str | None = None
    """Of ``infer``: what Inference-Header-Content-Length says."""


def make_requests(seed: int, count: int, workers: list[WorkerInfo]) -> Iterator[Malformed]:
    """``count`` requests to the server of these workers; the same ones for the same seed."""
    rng = random.Random(seed)
    kinds: dict[Kind, Callable[[Kind], Malformed]] = {
        "lane": lambda _: _lane(rng, workers),
        "grpc": lambda kind: Malformed(kind, "", _infer_request(rng).SerializeToString()),
        "grpc bytes": lambda kind: Malformed(kind, "", _harm(rng, _infer_request(rng).SerializeToString())),
        "infer": lambda _: _http_infer(rng),
        "generate": lambda kind: _generate(rng, kind),
        "generate_stream": lambda kind: _generate(rng, kind),
    }
    weights = [6, 5, 1, 2, 2, 1]
    for _ in range(count):
        (kind,) = rng.choices(list(kinds), weights)
        yield kinds[kind](kind)


# ---------------------------------------------------------------- lane messages


def _lane(rng: random.Random, workers: list[WorkerInfo]) -> Malformed:
    worker = rng.choice(workers)
    way = rng.randrange(7)
    if way == 0:
        return Malformed("lane", worker.worker_id, rng.randbytes(rng.choice([0, 1, 7, 100, 5000])))
    message = msgspec.to_builtins(_message(rng, worker, workers), builtin_types=(bytes,))
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2])):
        _change(rng, message)
    try:
        body = msgspec.msgpack.encode(message)
    except (OverflowError, TypeError):
        return _lane(rng, workers)
    return Malformed("lane", worker.worker_id, _harm(rng, body) if way == 1 else body)


def _message(rng: random.Random, worker: WorkerInfo, workers: list[WorkerInfo]) -> Any:
    """A message that is right, or nearly so."""
    ids = [f"fuzz-{rng.randrange(30)}" for _ in range(rng.randrange(1, 4))]
    match rng.randrange(8):
        case 0:
            return Hello()
        case 1:
            # Another worker's name: a newer epoch of a known one would replace it, as it has to.
            peer = msgspec.structs.replace(rng.choice(workers), worker_id="stranger_0", epoch=rng.choice([0, 1, 2**62]))
            return Pair(peer=peer)
        case 2:
            wait_s = rng.choice([0.0, 0.05, *(float(n) for n in NASTY_NUMBERS)])
            return Poll(lane=rng.choice(["a", "b", ""]), wait_s=wait_s, kv_from=rng.choice([None, 0, 1, -5, 2**62]))
        case 3:
            return Cancel(request_ids=rng.choice([ids, ids * 3, ["nobody"], [""], []]))
        case _:
            epoch = rng.choice([*[worker.epoch] * 12, 0, -1, worker.epoch + 1, 2**63 - 1])
            work = [_work(rng, request_id) for request_id in rng.choice([ids, ids, ids * 2, [""], []])]
            return Submit(lane=rng.choice(["a", "b"]), epoch=epoch, work=work)


def _work(rng: random.Random, request_id: str) -> Any:
    kind = rng.choice([Prefill, Generate, Generate, Decode])
    more = {"handle": rng.randbytes(rng.choice([0, 3, 33, 200]))} if kind is Decode else {}
    return kind(
        request_id=request_id,
        token_ids=_mostly(rng, rng.choice([[1, 2, 3], [5] * 40]), [[], [-1], [2**31], [10**6], [7] * 9000]),
        output_ids=_mostly(rng, [4] if kind is Decode else [], [[4], [-1]]),
        salt=rng.choice(["", "tenant", "\x00" * 100]),
        sampling=Sampling(
            temperature=_mostly(rng, 0.0, [1.0, math.nan, -1.0]),
            seed=rng.choice([0, 7, 2**63 - 1, 2**64 - 1, -1]),
            logprobs=_mostly(rng, None, [0, 3, -1, 2**40]),
        ),
        stopping=Stopping(
            max_tokens=_mostly(rng, rng.choice([1, 4, 50]), [0, -3, 2**40]),
            min_tokens=_mostly(rng, 0, [-1, 2**40]),
            stop_token_ids=_mostly(rng, (), [(1,), (-5,), (2**40,)]),
        ),
        **more,
    )


def _mostly(rng: random.Random, good: Any, bad: list[Any]) -> Any:
    return rng.choice(bad) if rng.random() < 0.1 else good


def _change(rng: random.Random, message: Any) -> None:
    """Replace, remove or add something, somewhere."""
    place = message
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = rng.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    match rng.randrange(4):
        case 0 if isinstance(place, dict):
            del place[key]
        case 1 if isinstance(place, dict):
            place[rng.choice(["type", "extra", ""])] = copy.deepcopy(rng.choice(NASTY_VALUES))
        case _:
            place[key] = copy.deepcopy(rng.choice(NASTY_VALUES))


def _harm(rng: random.Random, body: bytes) -> bytes:
    """Cut off, flip, insert or append."""
    place = rng.randrange(len(body) + 1)
    match rng.randrange(4):
        case 0:
            return body[:place]
        case 1:
            return body[:place] + rng.randbytes(1) + body[place + 1 :]
        case 2:
            return body[:place] + rng.randbytes(rng.randrange(20)) + body[place:]
        case _:
            return body + rng.randbytes(rng.randrange(1, 9))


# ---------------------------------------------------------------- gRPC


def _infer_request(rng: random.Random) -> Any:
    request = service_pb2.ModelInferRequest(
        model_name=rng.choice(MODELS), id=rng.choice(["", "one", "\u00e9", "x" * 999])
    )
    if rng.random() < 0.05:
        request.model_version = rng.choice(["1", "7", "-1", "x"])
    for name in _names(rng, request.model_name):
        _add_input(rng, request, name)
    if rng.random() < 0.03 and request.raw_input_contents:
        del request.raw_input_contents[-1]
    if rng.random() < 0.05:
        request.outputs.add(name=rng.choice(["text_output", "nothing"]))
    if rng.random() < 0.1:
        name = rng.choice(["priority", "timeout", "sequence_id", "headers_x", "temprature", ""])
        request.parameters[name].CopyFrom(
            rng.choice(
                [
                    service_pb2.InferParameter(int64_param=rng.choice([0, -1, 2**63 - 1])),
                    service_pb2.InferParameter(string_param="\x00"),
                    service_pb2.InferParameter(bool_param=True),
                ]
            )
        )
    return request


def _names(rng: random.Random, model: str) -> list[str]:
    """Inputs to give: mostly a prompt that the model takes and a few options, sometimes anything."""
    prompts = ["input_ids"] if model.endswith("_0") else ["text_input", "text_input", "input_ids", "messages"]
    names = [rng.choice(prompts)] if rng.random() < 0.9 else []
    odd = {"lane_request", "no_such_input", *PROMPTS}
    options = [name for name in INPUTS if name not in odd or rng.random() < 0.05]
    return names + rng.sample(options, rng.choice([0, 1, 1, 2, 3]))


def _add_input(rng: random.Random, request: Any, name: str) -> None:
    datatype = INPUTS[name] if rng.random() < 0.97 else rng.choice(list(DATATYPES))
    count = rng.choice([1, 3, 100]) if name in LISTS else 1
    if rng.random() < 0.05:
        count = rng.choice([0, 2, -1, 2**31, 2**62])
    shape = [1, count] if rng.random() < 0.95 else rng.choice([[count], [1, 1, count], [], [count, 1]])
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    values = max(0, min(count, 100))
    if rng.random() < 0.03:
        tensor.contents.int_contents.extend([1] * values)
        return
    raw = b"".join(_string(rng, name) for _ in range(values))
    if DATATYPES.get(datatype):
        raw = _numbers(rng, datatype, values)
    request.raw_input_contents.append(_harm(rng, raw) if rng.random() < 0.04 else raw)


def _string(rng: random.Random, name: str) -> bytes:
    """As Triton wants it: the length, then so many bytes."""
    texts: list[bytes] = [
        b"",
        b"Hello",
        b"\xff\xfe",
        b"\x00",
        b"a" * 30_000,
        b"\xed\xa0\x80",
        b"{{ 1/0 }}",
    ]
    if name == "messages":
        texts += [_messages(rng).encode() for _ in range(6)]
    text = rng.choice(texts)
    return len(text).to_bytes(4, "little") + text


def _messages(rng: random.Random) -> str:
    role = rng.choice(["user", "assistant", "", "nobody", "\u0000"])
    return rng.choice([
        json.dumps([{"role": role, "content": "Hi"}]), json.dumps([{"role": role}]),
        '[{"role": "user", "content": "\\ud800"}]',
        "[]", "{}", "null", "[", "[" * 5000, json.dumps([{"role": "user", "content": None}]), "1e999", '"text"',
    ])  # fmt: skip


def _numbers(rng: random.Random, datatype: str, count: int) -> bytes:
    size = DATATYPES[datatype]
    if datatype.startswith("FP") and size > 2:
        values = [rng.choice([0.0, 1.0, 0.5, -1.0, 1e30, math.nan, math.inf, -math.inf]) for _ in range(count)]
        return np.array(values, dtype=np.float32 if size == 4 else np.float64).tobytes()
    small = [rng.choice([0, 1, 1, 5, 20, 300]) % (1 << 8 * size - 1) for _ in range(count)]
    raw = b"".join(value.to_bytes(size, "little") for value in small)
    return rng.randbytes(len(raw)) if rng.random() < 0.2 else raw


# ---------------------------------------------------------------- HTTP


def _generate(rng: random.Random, kind: Kind) -> Malformed:
    """A body of the generate extension: plain JSON, fields by name."""
    model = rng.choice(MODELS)
    fields: dict[str, Any] = {}
    for name in _names(rng, model):
        fields[name] = _json_value(rng, name)
    text = json.dumps(fields)
    if rng.random() < 0.1:
        text = rng.choice(["", "{", "[]", "null", "1", '{"text_input": }', "{" * 3000, text[:-1], text + "}", "\x00"])
    body = text.encode()
    return Malformed(kind, model, _harm(rng, body) if rng.random() < 0.1 else body)


def _json_value(rng: random.Random, name: str) -> Any:
    """Mostly of the right type, and then often out of bounds."""
    if rng.random() < 0.1:
        return rng.choice([value for value in NASTY_VALUES if not isinstance(value, bytes)])
    match INPUTS[name]:
        case "BYTES":
            return _messages(rng) if name == "messages" else rng.choice(["Hello", "", "\x00", "\ud800", "{{ 1/0 }}"])
        case "BOOL":
            return rng.choice([True, False])
        case "FP32":
            return rng.choice([0.0, 0.5, 1.0, -1.0, 1e30])
        case _:
            return [rng.choice([1, 2, 3, -1, 49_152])] * 3 if name in LISTS else rng.choice([1, 2, 5, 0, -1, 2**31 - 1])


def _http_infer(rng: random.Random) -> Malformed:
    """A body of the KServe protocol: JSON, with or without binary data behind it."""
    model = rng.choice(MODELS)
    inputs = []
    for name in _names(rng, model):
        data = _json_value(rng, name)
        data = data if isinstance(data, list) else [data]
        # No shape beyond 64 bits of bytes: by HTTP, Triton 2.51 dies of it by itself, before any model is asked.
        shape: Any = [1, len(data)] if rng.random() < 0.9 else rng.choice([[1], [], [-1], [1, 1000], "x"])
        one: dict[str, Any] = {"name": name, "datatype": INPUTS[name], "shape": shape}
        is_binary = rng.random() < 0.1
        one |= {"parameters": {"binary_data_size": rng.choice([0, 4, -1, 2**40])}} if is_binary else {"data": data}
        inputs.append(one)
    head = json.dumps({"inputs": inputs, "id": _mostly(rng, "a", ["", 5])}).encode()
    body = head + rng.randbytes(_mostly(rng, 0, [4, 40]))
    return Malformed("infer", model, body, _mostly(rng, None, [str(len(head)), "0", "-1", "99999999", "x"]))
