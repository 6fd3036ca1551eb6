"""Requests as clients send them: what is read, what is refused, and how it is said."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tandem.api.ask import Ask, read_ask, resolve_stopping
from tandem.api.tensors import Array, ids_tensor, number_tensor, text_tensor
from tandem.errors import TandemError
from tandem.messages import DEFAULT_PRIORITY, Guide

PROMPT = {"text_input": text_tensor("Hello")}


def read(tensors: dict[str, Array], parameters: str = "") -> Ask:
    return read_ask("id-1", tensors, parameters)


def refusal(tensors: dict[str, Array], parameters: str = "") -> str:
    with pytest.raises(TandemError) as caught:
        read(tensors, parameters)
    assert caught.value.code == "invalid_request"
    return caught.value.message


def test_a_bare_prompt_is_greedy_and_answers_at_once() -> None:
    ask = read(PROMPT)
    assert ask.text == "Hello"
    assert not ask.stream
    assert ask.max_tokens is None
    assert ask.sampling.temperature == 0.0
    assert ask.sampling.logprobs is None


def test_priority_and_tenant_are_read_and_have_defaults() -> None:
    given = PROMPT | {"priority": number_tensor(1, np.int32), "tenant": text_tensor("acme.eu:7")}
    assert (read(given).priority, read(given).tenant) == (1, "acme.eu:7")
    assert (read(PROMPT).priority, read(PROMPT).tenant) == (DEFAULT_PRIORITY, "")
    assert read(PROMPT | {"priority": number_tensor(0, np.int32)}).priority == DEFAULT_PRIORITY


def test_messages_and_token_ids_are_prompts_too() -> None:
    messages = [{"role": "user", "content": "Grüße 🌍"}]
    assert read({"messages": text_tensor(json.dumps(messages))}).messages == messages
    assert read({"input_ids": ids_tensor([5, 6, 7])}).token_ids == [5, 6, 7]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("top_k", 50, 1.0), ("top_p", 0.9, 1.0), ("min_p", 0.1, 1.0), ("top_k", 1, 0.0), ("top_p", 0.0, 0.0)],
)
def test_filters_without_a_temperature_sample_at_one(field: str, value: float, expected: float) -> None:
    dtype = np.int32 if field == "top_k" else np.float32
    assert read(PROMPT | {field: number_tensor(value, dtype)}).sampling.temperature == expected


def test_adapters_and_guides_are_asked_for_as_of_tritons_tensorrt_llm_models() -> None:
    asked = {"lora_task_id": number_tensor(3, np.uint64), "guided_decoding_guide_type": text_tensor("json_schema")}
    sampling = read(PROMPT | asked | {"guided_decoding_guide": text_tensor("{}")}).sampling
    assert (sampling.lora_task_id, sampling.guide) == (3, Guide(kind="json_schema", text="{}"))
    assert read(PROMPT | {"guided_decoding_guide_type": text_tensor("json")}).sampling.guide == Guide(kind="json")
    assert (read(PROMPT).sampling.lora_task_id, read(PROMPT).sampling.guide) == (None, None)


def test_a_seed_is_kept_and_a_missing_one_is_drawn() -> None:
    assert read(PROMPT | {"seed": number_tensor(2**63, np.uint64)}).sampling.seed == 2**63
    assert read(PROMPT).sampling.seed != read(PROMPT).sampling.seed


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "exactly one of text_input, messages, input_ids; got none"),
        (PROMPT | {"input_ids": ids_tensor([1])}, "got text_input and input_ids"),
        ({"text_input": text_tensor("")}, "text_input: the prompt is empty"),
        ({"messages": text_tensor("[]")}, "messages: the prompt is empty"),
        ({"messages": text_tensor("[{")}, "messages: "),
        ({"messages": text_tensor('[{"role": 1}]')}, "messages: Expected `str`, got `int`"),
        ({"text_input": text_tensor(b"ok \xff\xfe")}, "text_input: byte 3 (0xff) is not valid UTF-8"),
        (PROMPT | {"max_tokens": number_tensor(0, np.int32)}, "max_tokens: 0; expected 1 to"),
        (PROMPT | {"max_tokens": number_tensor(-4, np.int32)}, "max_tokens: -4; expected 1 to"),
        (PROMPT | {"min_tokens": number_tensor(-1, np.int32)}, "min_tokens: -1; expected 0 to"),
        (PROMPT | {"temperature": number_tensor(-0.5, np.float32)}, "temperature: -0.5; expected 0 to 1000"),
        (PROMPT | {"temperature": number_tensor(np.nan, np.float32)}, "temperature: nan is not a finite number"),
        (PROMPT | {"temperature": number_tensor(np.inf, np.float32)}, "temperature: inf is not a finite number"),
        (PROMPT | {"top_p": number_tensor(1.5, np.float32)}, "top_p: 1.5; expected 0 to 1"),
        (PROMPT | {"top_k": number_tensor(-1, np.int32)}, "top_k: -1; expected 0 to"),
        (PROMPT | {"repetition_penalty": number_tensor(0, np.float32)}, "repetition_penalty: 0; expected more than 0"),
        (PROMPT | {"presence_penalty": number_tensor(3, np.float32)}, "presence_penalty: 3; expected -2 to 2"),
        (
            PROMPT | {"guided_decoding_guide": text_tensor("x")},
            "guided_decoding_guide: needs guided_decoding_guide_type",
        ),
        (
            PROMPT | {"guided_decoding_guide_type": text_tensor("yaml")},
            "guided_decoding_guide_type: 'yaml'; expected one",
        ),
        (PROMPT | {"guided_decoding_guide_type": text_tensor("regex")}, "'regex' needs a guided_decoding_guide"),
        (PROMPT | {"top_logprobs": number_tensor(21, np.int32)}, "top_logprobs: 21; expected 0 to 20"),
        (PROMPT | {"timeout_s": number_tensor(0, np.float32)}, "timeout_s: 0; expected more than 0"),
        (PROMPT | {"priority": number_tensor(10, np.int32)}, "priority: 10; expected 0 to 9"),
        (PROMPT | {"tenant": text_tensor('a"b')}, "tenant: 'a\"b'; expected at most 64 letters"),
        (PROMPT | {"tenant": text_tensor("a" * 65)}, "expected at most 64 letters"),
        (PROMPT | {"stop_words": np.array([[b""]], dtype=object)}, "stop_words[0]: 0 bytes long; expected 1 to 256"),
        (PROMPT | {"stop_words": np.array([[b"x" * 300]], dtype=object)}, "stop_words[0]: 300 bytes long"),
        (PROMPT | {"stop_words": np.array([[b"a"] * 17], dtype=object)}, "stop_words: 17 given, at most 16"),
        (PROMPT | {"stop_words": np.array([[b"\xc3"]], dtype=object)}, "stop_words: byte 0 (0xc3) is not valid UTF-8"),
        (PROMPT | {"exclude_input_in_output": np.array([[False]])}, "exclude_input_in_output: false"),
        (PROMPT | {"temperature": np.zeros((1, 2), np.float32)}, "temperature: 2 values given, exactly 1 expected"),
    ],
)
def test_wrong_input_names_field_value_and_limit(tensors: dict[str, Array], said: str) -> None:
    assert said in refusal(tensors)


def test_an_unknown_parameter_is_refused_and_tritons_own_are_not() -> None:
    assert "temprature: unknown parameter" in refusal(PROMPT, '{"temprature": 1}')
    read(PROMPT, '{"triton_enable_empty_final_response": true, "priority": 1}')


def test_stopping_takes_what_the_context_leaves() -> None:
    ask = read(PROMPT)
    assert resolve_stopping(ask, 90, 100, 256, (2,)).max_tokens == 10
    assert resolve_stopping(ask, 10, 1000, 256, (2,)).max_tokens == 256
    assert resolve_stopping(ask, 10, 1000, 256, (2, 7)).stop_token_ids == (2, 7)


def test_ignoring_the_end_of_text_keeps_the_clients_own_stop_tokens() -> None:
    ask = read(PROMPT | {"ignore_eos": np.array([[True]]), "stop_token_ids": ids_tensor([9])})
    assert resolve_stopping(ask, 1, 100, 256, (2,)).stop_token_ids == (9,)


@pytest.mark.parametrize(
    ("max_tokens", "prompt", "code", "said"),
    [
        (None, 100, "prompt_too_long", "prompt: 100 tokens; at most 99 leave room"),
        (11, 90, "invalid_request", "max_tokens: 11; after a prompt of 90 tokens the context of 100 leaves 10"),
    ],
)
def test_what_does_not_fit_the_context_is_refused(max_tokens: int | None, prompt: int, code: str, said: str) -> None:
    given = {} if max_tokens is None else {"max_tokens": number_tensor(max_tokens, np.int32)}
    with pytest.raises(TandemError) as caught:
        resolve_stopping(read(PROMPT | given), prompt, 100, 256, ())
    assert caught.value.code == code
    assert said in caught.value.message
