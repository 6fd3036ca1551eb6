"""A stage used on its own: what a plain client's tensors become, and what it gets."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from tandem.api.tensors import Array, ids_tensor, number_tensor, text_tensor
from tandem.deployment import Limits
from tandem.errors import TandemError
from tandem.messages import (
    AnyWork,
    Decode,
    Failed,
    Finished,
    Generate,
    KvFormat,
    Prefill,
    Prefilled,
    Pulled,
    StageName,
    TokenLogprob,
    Tokens,
    WorkerInfo,
)
from tandem.stage.direct import DirectAnswer, read_work
from tests.unit.api.channel import Channel

PROMPT = {"input_ids": ids_tensor([5, 6, 7])}
HANDLE = {"kv_handle": text_tensor(base64.b64encode(b"ticket"))}


def info(stage: StageName) -> WorkerInfo:
    return WorkerInfo(
        worker_id=f"{stage}_0",
        epoch=1,
        stage=stage,
        engine="torch",
        kv=KvFormat(
            fingerprint="f", dtype="d", layout="l", block_size=16, num_layers=1, num_kv_heads=1, slice_bytes=64
        ),
        vocab_size=100,
        max_model_len=20,
        max_batch_size=1,
    )


def read(stage: StageName, tensors: dict[str, Array], parameters: str = "") -> AnyWork:
    return read_work("r", tensors, parameters, info(stage), Limits(default_max_tokens=9), (2,))[1]


def test_prefill_reads_the_prompt() -> None:
    work = read("prefill", PROMPT | {"temperature": number_tensor(0.5, np.float32)})
    assert isinstance(work, Prefill)
    assert (work.request_id, work.token_ids, work.output_ids) == ("r", [5, 6, 7], [])
    assert work.sampling.temperature == 0.5
    assert (work.stopping.max_tokens, work.stopping.stop_token_ids) == (9, (2,))


def test_decode_redeems_the_handle_and_goes_on() -> None:
    work = read("decode", PROMPT | HANDLE | {"output_ids": ids_tensor([8])})
    assert isinstance(work, Decode)
    assert (work.handle, work.token_ids, work.output_ids) == (b"ticket", [5, 6, 7], [8])


def test_decode_without_a_handle_does_it_all() -> None:
    assert isinstance(read("decode", PROMPT), Generate)


@pytest.mark.parametrize("stage", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"input_ids": ids_tensor([5, 100])}, "invalid_request", "input_ids[1]: 100 is no token id; expected 0 to 99"),
        ({"input_ids": ids_tensor([])}, "invalid_request", "input_ids: the prompt is empty"),
        ({"input_ids": ids_tensor(range(20))}, "prompt_too_long", "prompt: 20 tokens; at most 19"),
        ({"output_ids": ids_tensor([-1])}, "invalid_request", "output_ids[0]: -1 is no token id"),
        ({"stop_token_ids": ids_tensor([100])}, "invalid_request", "stop_token_ids[0]: 100 is no token id"),
        ({"max_tokens": number_tensor(18, np.int32)}, "invalid_request", "max_tokens: 18; after a prompt of 3"),
        (
            {"output_ids": ids_tensor([1] * 9)},
            "invalid_request",
            "output_ids: 9 tokens of the answer exist, max_tokens",
        ),
        ({"kv_handle": text_tensor("%%%")}, "handle_malformed", "kv_handle: not base64"),
        ({"kv_handle": text_tensor(b"\xff")}, "invalid_request", "kv_handle: byte 0 (0xff) is not valid UTF-8"),
    ],
)
def test_what_is_wrong_is_refused(stage: StageName, change: dict[str, Array], code: str, said: str) -> None:
    with pytest.raises(TandemError) as caught:
        read(stage, PROMPT | change)
    assert caught.value.code == code
    assert said in caught.value.message


def test_a_prompt_is_needed_and_parameters_are_checked() -> None:
    with pytest.raises(TandemError, match="got none"):
        read("prefill", {})
    with pytest.raises(TandemError, match="max_token: unknown parameter"):
        read("prefill", PROMPT, '{"max_token": 4}')


def answer(*, stream: bool) -> tuple[DirectAnswer, Channel]:
    channel = Channel()
    return DirectAnswer(channel, stream=stream, prompt_tokens=3, output_tokens=1), channel


def tokens(index: int, *ids: int) -> Tokens:
    return Tokens(
        request_id="r", index=index, token_ids=list(ids), logprobs=[TokenLogprob(logprob=-float(i)) for i in ids]
    )


PULLED = Pulled(request_id="r", bytes_moved=1 << 40, seconds=0.25)
FINISHED = Finished(request_id="r", reason="length")


def test_a_stream_has_one_response_per_step() -> None:
    direct, channel = answer(stream=True)
    direct.take([PULLED])
    direct.take([tokens(1, 5)])
    direct.take([tokens(2, 6), tokens(3, 7)])
    direct.take([tokens(4, 8), FINISHED])
    assert [sent["output_ids"].tolist() for sent in channel.sent] == [[[5]], [[6, 7]], [[8]]]
    assert [sent["output_log_probs"].tolist() for sent in channel.sent] == [[[-5]], [[-6, -7]], [[-8]]]
    assert channel.closed
    facts = [channel.fact(name) for name in ("finish_reason", "num_input_tokens", "num_output_tokens")]
    assert facts == ["length", 3, 5]
    assert (channel.fact("kv_bytes"), channel.fact("kv_transfer_ms")) == (1 << 40, 250.0)


def test_without_streaming_there_is_one_response() -> None:
    direct, channel = answer(stream=False)
    for step in ([PULLED], [tokens(1, 5)], [tokens(2, 6, 7)], [FINISHED]):
        assert channel.sent == []
        direct.take(list(step))
    assert channel.ids() == [5, 6, 7]
    assert channel.sent[0]["output_log_probs"].tolist() == [[-5, -6, -7]]


def test_prefill_ends_with_its_handle() -> None:
    direct, channel = answer(stream=False)
    direct.take([tokens(0, 5), Prefilled(request_id="r", handle=b"ticket")])
    assert channel.ids() == [5]
    assert channel.fact("finish_reason") == ""
    assert base64.b64decode(str(channel.fact("kv_handle"))) == b"ticket"


def test_prefill_that_ends_the_answer_has_none() -> None:
    direct, channel = answer(stream=False)
    direct.take([tokens(0, 2), Prefilled(request_id="r", handle=None, finish_reason="stop")])
    assert channel.fact("finish_reason") == "stop"
    assert "kv_handle" not in channel.sent[-1]


def test_a_failure_ends_the_response_with_its_code() -> None:
    direct, channel = answer(stream=True)
    direct.take([tokens(1, 5)])
    direct.take([Failed(request_id="r", code="lease_expired", message="too late")])
    assert channel.ids() == [5]
    assert channel.error is not None
    assert (channel.error.code, channel.error.message) == ("lease_expired", "too late")
