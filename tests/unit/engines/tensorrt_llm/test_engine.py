"""What is TensorRT-LLM's own in the engine: its errors, its end, what it cannot let go of, what newer versions want."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path

import pytest

from tandem.deployment import LoraAdapter
from tandem.errors import TandemError
from tandem.keys import load_keys
from tandem.kv.handle import verify
from tandem.messages import Failed, Finished, Guide, HeldByLibrary, Prefilled, Pulled
from tests import fakes
from tests.unit.engines.conformance.conftest import introduce
from tests.unit.engines.conformance.harness import (
    as_decode,
    as_prefill,
    changed,
    failure_of,
    handle_of,
    make_work,
    reason_of,
    tokens_of,
)
from tests.unit.engines.tensorrt_llm.conftest import Start, library_of

VERSIONS = ("1.2", "1.3", "1.4")


class Ends:
    """Threads that ended with an error, as the engine process hears of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.said: list[str] = []
        self._event = threading.Event()
        monkeypatch.setattr(threading, "excepthook", self._hook)

    def _hook(self, args: threading.ExceptHookArgs) -> None:
        self.said.append(str(args.exc_value))
        self._event.set()

    def wait(self) -> str:
        assert self._event.wait(30)
        return self.said[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_hands_over(start: Start, fake: pytest.MonkeyPatch, version: str) -> None:
    """Also with log-probabilities, for which 1.2 has to read the prompt again."""
    fakes.use(fake, version)
    prefill, decode = start("prefill_0"), start("decode_0")
    introduce(prefill, decode)
    for top in (None, 2):
        work = make_work(f"top {top}", [1, 2, 3] * 9, max_tokens=6, logprobs=top)
        (first,) = prefill.run(as_prefill(work))
        (rest,) = decode.run(as_decode(work, tokens_of(first), handle_of(first)))
        expected = importlib.import_module("tensorrt_llm._tokens").expected_answer(work.token_ids, 6, 400)
        assert tokens_of(first) + tokens_of(rest, start=1) == expected
        assert isinstance(rest[0], Pulled) == (top is None or version != "1.2")
    prefill.until("handles_held", 0)


def test_a_handle_holds_what_the_library_said_and_nothing_of_tandems_blocks(start: Start) -> None:
    (events,) = start("prefill_0").run(as_prefill(make_work("handle", [5] * 20)))
    handle = verify(handle_of(events), load_keys())
    assert isinstance(handle.held, HeldByLibrary)
    assert handle.held.first_token_ids == tokens_of(events)
    assert handle.held.opaque_state
    assert handle.held.context_request_id > 0
    assert (handle.num_tokens, handle.block_ids) == (20, [])


def test_workers_of_other_versions_or_transceivers_do_not_fit(start: Start, fake: pytest.MonkeyPatch) -> None:
    prefill, other = start("prefill_0"), start("decode_0", cache_transceiver="UCX")
    with pytest.raises(TandemError, match=r"library.backend is 'UCX' here and 'NIXL' there"):
        other.engine.pair(prefill.engine.info)
    fakes.use(fake, "1.3")
    newer = start("decode_0")
    with pytest.raises(TandemError, match=r"library.library is 'tensorrt_llm 1.3.0rc29' here and 'tensorrt_llm 1.2.1'"):
        newer.engine.pair(prefill.engine.info)
    bare = changed(prefill.engine.info, library=None)
    with pytest.raises(TandemError, match="KV is moved by Tandem on one side and by the engine's library on the other"):
        newer.engine.pair(bare)


def test_what_a_handle_held_counts_as_used_until_the_library_frees_it(start: Start) -> None:
    """It cannot be told that a handle was given up."""
    prefill = start("prefill_0", kv={"lease_s": 0.3, "transfer_timeout_s": 0.3})
    prefill.run(as_prefill(make_work("given up", [1] * 40)))
    prefill.until("handles_held", 1)
    prefill.until_at_least("blocks_used", 1)
    prefill.engine.cancel(["given up"])
    prefill.until("handles_held", 0)
    prefill.run(make_work("next", [2, 3]))
    assert prefill.load.blocks_used > 0
    prefill.until("blocks_used", 0)


@pytest.mark.parametrize("fault", ["context", "generation"])
def test_a_request_that_fails_leaves_the_engine_as_it_was(start: Start, fault: str) -> None:
    prefill, decode = start("prefill_0"), start("decode_0")
    introduce(prefill, decode)
    for harness in (prefill, decode):
        library_of(harness).faults.arm(fault, 1)
    work = make_work("fails", [1] * 10)
    (events,) = prefill.run(as_prefill(work))
    if fault == "context":
        assert "RequestError: CUDA out of memory" in failure_of(events).message
        (events,) = prefill.run(as_prefill(work))
    (rest,) = decode.run(as_decode(work, tokens_of(events), handle_of(events)))
    assert isinstance(rest[-1], Failed if fault == "generation" else Finished)
    assert reason_of(decode.run(work)[0]) == "length"


def test_an_error_that_is_not_a_requests_ends_the_engine(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, harness = Ends(monkeypatch), start("decode_0")
    library_of(harness).faults.arm("fatal", 1)
    (*_, failure) = harness.run(make_work("last", [1, 2, 3], max_tokens=200))[0]
    assert isinstance(failure, Failed)
    assert failure.code == "engine_failed"
    assert "TensorRT-LLM has ended: " in ends.wait()


def test_a_library_that_is_shut_down_ends_the_engine(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """1.2 says only by refusing requests that it has ended."""
    ends, harness = Ends(monkeypatch), start("decode_0")
    library_of(harness).shutdown()
    assert "LLM is shutting down" in failure_of(harness.run(make_work("late", [1]))[0]).message
    assert "LLM is shutting down" in ends.wait()


def test_an_engine_that_hangs_is_given_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    ends, harness = Ends(monkeypatch), start("decode_0", stall_timeout_s=0.3)
    library_of(harness).faults.arm("hang")
    harness.engine.submit([make_work("stuck", [1, 2, 3])])
    assert "TensorRT-LLM hangs: none of 1 requests has got on" in ends.wait()


def test_without_its_feeds_it_answers_all_the_same(start: Start) -> None:
    harness = start("decode_0")
    for feed in ("stats", "events"):
        library_of(harness).faults.arm(feed, 2)
    assert reason_of(harness.run(make_work("blind", [1] * 30))[0]) == "length"
    harness.until_at_least("steps", 1)  # they are asked again


def test_feeds_that_have_to_be_called_are_called(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the executor is reached by RPC the asynchronous ones would block the event loop."""
    library = importlib.import_module("tensorrt_llm")
    plain = library.LLM
    monkeypatch.setattr(library, "LLM", lambda **given: plain(**given, orchestrator_type="rpc"))
    monkeypatch.setattr(library.LLM, "generate_async", plain.generate_async, raising=False)
    for name in ("get_stats_async", "get_kv_cache_events_async", "shutdown"):
        monkeypatch.setattr(library.LLM, name, getattr(plain, name), raising=False)
    harness = start("decode_0")
    harness.run(make_work("rpc", [1] * 30))
    harness.until_at_least("steps", 5)
    harness.until_at_least("blocks_cached", 7)


def test_adapters_and_guides(start: Start, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    adapter = LoraAdapter(task_id=3, path=str(tmp_path))
    harness = start("decode_0", lora=[adapter], guided_decoding="xgrammar")
    assert harness.engine.info.features == ["lora", "guided_decoding"]
    tokens = importlib.import_module("tensorrt_llm._tokens")
    work = make_work("flavoured", [1, 2, 3], lora_task_id=3, guide=Guide(kind="regex", text="[0-9]+"))
    expected = tokens.expected_answer([1, 2, 3], 8, 400, flavour=tokens.make_flavour(3, "[0-9]+"))
    assert tokens_of(harness.run(work)[0]) == expected
    unknown = failure_of(harness.run(make_work("unknown", [1], lora_task_id=4))[0])
    assert (unknown.code, "lora_task_id: 4 is no adapter of this worker; it has 3" in unknown.message) == (
        "invalid_request",
        True,
    )


def test_a_built_engine_hands_over(start: Start, model_dir: Path, tmp_path: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    built = {"build_config": {"max_seq_len": 256}, "pretrained_config": {"vocab_size": config["vocab_size"]}}
    (tmp_path / "config.json").write_text(json.dumps(built))
    prefill, decode = start("prefill_0", engine_dir=str(tmp_path)), start("decode_0", engine_dir=str(tmp_path))
    introduce(prefill, decode)
    work = make_work("built", [1, 2, 3] * 9)
    (first,) = prefill.run(as_prefill(work))
    (rest,) = decode.run(as_decode(work, tokens_of(first), handle_of(first)))
    assert len(tokens_of(first) + tokens_of(rest, start=1)) == 8


def test_a_decode_worker_prefills_for_nobody(start: Start) -> None:
    """With TensorRT-LLM 1.2 a context phase on an engine that is not made for it ends the engine."""
    decode = start("decode_0")
    assert "is for decode, not for prefill" in failure_of(decode.run(as_prefill(make_work("lost", [1, 2])))[0]).message
    assert reason_of(decode.run(make_work("lost", [1, 2]))[0]) == "length"


def test_without_a_prefix_cache_there_are_no_events(start: Start) -> None:
    harness = start("decode_0", kv={"prefix_cache": False})
    for _ in range(2):
        assert harness.run(make_work("same", [1] * 30))[0][-1] == Finished(request_id="same", reason="length")
    harness.until_at_least("steps", 10)
    assert harness.cached == set()


@pytest.mark.parametrize("drops", ["0", "1"])
def test_the_end_token_comes_out_whether_the_library_tells_it_or_not(
    start: Start, fake: pytest.MonkeyPatch, drops: str
) -> None:
    fake.setenv("FAKE_TRTLLM_DROP_END", drops)
    prefill, decode = start("prefill_0"), start("decode_0")
    whole = tokens_of(decode.run(make_work("whole", [4, 5, 6], max_tokens=12))[0])
    for last in (0, 5):
        stopping = make_work("ends", [4, 5, 6], max_tokens=12, stop_token_ids=(whole[last], 399))
        events = decode.run(stopping)[0]
        assert (tokens_of(events), reason_of(events)) == (whole[: last + 1], "stop")
    (first,) = prefill.run(as_prefill(make_work("ends", [4, 5, 6], stop_token_ids=(whole[0],))))
    assert tokens_of(first) == whole[:1]
    assert first[-1] == changed(first[-1], handle=None, finish_reason="stop")
    prefill.until("blocks_used", 0)  # the library knew that nobody would fetch the KV


def test_a_least_length_holds_for_all_stop_tokens(start: Start) -> None:
    """The library would heed it for the end token alone, so it is not told of the others."""
    prefill = start("prefill_0")
    work = make_work("least", [1] * 9, min_tokens=3, stop_token_ids=tuple(range(400)))
    end = prefill.run(as_prefill(work))[0][-1]
    assert isinstance(end, Prefilled)
    assert (end.finish_reason, end.handle is not None) == (None, True)
