"""Tandem's code asks TensorRT-LLM for nothing that the description does not have; and what the check itself notices."""

import ast
from pathlib import Path

import pytest

import tandem
from tests.fakes.tensorrt_llm_contract import VERSIONS, literal, read_contract
from tests.unit.tensorrt_llm.usage import Usage, check_source

PACKAGE = Path(tandem.__file__).parent
BUILD = PACKAGE.parents[1] / "build"
ENGINE = PACKAGE / "engines" / "tensorrt_llm"
IMPORTER = ENGINE / "library.py"
"""The one module that may import it."""
MUST_BE_SEEN = {
    *(
        "LLM.generate_async",
        "LLM(kv_cache_config=)",
        "LLM.generate_async(disaggregated_params=)",
        "RequestOutput.abort",
    ),
    *("RequestOutput.outputs", "CompletionOutput.token_ids", "CompletionOutput.finish_reason"),
    *("DisaggregatedParams(opaque_state=)", "DisaggregatedParams(request_type=)", "SamplingParams(max_tokens=)"),
    *("CacheTransceiverConfig(kv_transfer_timeout_ms=)", "KvCacheEventData.type", "IterationStats.iterLatencyMS"),
}
"""If the check does not find these, names have changed, and it looks past what it is to look at."""


def test_the_description_names_a_source_for_every_class_in_every_version_that_has_it():
    for name, described in read_contract().items():
        assert set(described.sources) == set(described.versions), name
        for field in (*described.fields.values(), *described.attributes.values(), *described.methods.values()):
            assert field.versions, name
            assert set(field.versions) <= set(VERSIONS), name


def test_defaults_in_the_description_are_values_of_their_types():
    for name, described in read_contract().items():
        for field_name, field in described.fields.items():
            for version in field.versions:
                default = field.default_in(version)
                if default is None or default.endswith("()"):
                    continue
                value = literal(default)
                assert value is None or field.one_of is None or value in field.one_of, (name, field_name, version)
                assert value is not None or "None" in field.type or field.type == "any", (name, field_name, version)


def test_the_engine_asks_for_nothing_that_is_not_in_the_description():
    usages = [check_source(path.read_text(), path.name, own_names()) for path in sorted(ENGINE.glob("*.py"))]

    assert [violation for usage in usages for violation in usage.violations] == []
    assert MUST_BE_SEEN - {name for usage in usages for name in usage.used} == set()


def test_only_one_module_imports_it_and_nothing_else_names_what_it_has_not():
    others = [path for folder in (PACKAGE, BUILD) for path in sorted(folder.rglob("*.py")) if path.parent != ENGINE]
    usages = {path.name: check_source(path.read_text(), path.name) for path in others}

    assert {name: usage.imports for name, usage in usages.items() if usage.imports} == {}
    texts = [violation for usage in usages.values() for violation in usage.violations]
    assert [text for text in texts if "tensorrt_llm" in text or "variable" in text or "trtllm-build" in text] == []


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("from tensorrt_llm import LMM", "tensorrt_llm.LMM is not in the description"),
        ("from tensorrt_llm.llmapi import LoRARequest", "tensorrt_llm.llmapi.LoRARequest is not"),
        ("importlib.import_module('tensorrt_llm.serve')", "the module tensorrt_llm.serve is not"),
        ("library.KvCacheConfig(block_size=16)", "KvCacheConfig(block_size=) is not"),
        ("library.KvCachConfig(dtype='auto')", "Library.KvCachConfig is no class"),
        ("library.CacheTransceiverConfig(transceiver_runtime='CPP')", "only in 1.3, 1.4, and no condition"),
        ("library.SamplingParams(32)", "by position, whose order may change"),
        ("self._llm.generate(prompt)", "LLM.generate is not"),
        ("llm.generate_async(inputs=p, sampling=s)", "LLM.generate_async(sampling=) is not"),
        ("llm.generate_async(p, s)", "by position, whose order may change"),
        ("llm._check_health()", "only in 1.3, 1.4, and no condition"),
        ("call: dict = {'inputs': p, 'prompt': t}", "LLM.generate_async(prompt=) is not"),
        ("arguments['max_model_len'] = 5", "LLM(max_model_len=) is not"),
        (
            "async def f(llm):\n    async for o in llm.generate_async(p):\n        o.outputs[0].tokens",
            "CompletionOutput.tokens",
        ),
        ("out = (await llm.generate_async(p)).output_ids", "RequestOutput.output_ids is not"),
        ("track.output.outputs[0].handle", "CompletionOutput.handle is not"),
        ("params = library.DisaggregatedParams()\nparams.handle", "DisaggregatedParams.handle is not"),
        ("for block in event['data']['blocks']:\n    block['hash']", "StoredBlock.hash is not"),
        ("statistics.get('kvCacheStats')['usedBlocks']", "KvCacheStats.usedBlocks is not"),
        ("os.environ['TRTLLM_USE_UCX'] = '1'", "the variable TRTLLM_USE_UCX is not"),
        ("['trtllm-build', '--tp_size', '2']", "trtllm-build --tp_size is not"),
    ],
)
def test_the_check_notices_what_is_not_in_the_description(source: str, why: str):
    (violation, *_) = check(source).violations

    assert why in violation


@pytest.mark.parametrize(
    "source",
    [
        "if library.has('DisaggregatedParams', 'ctx_dp_rank'):\n    library.DisaggregatedParams(ctx_dp_rank=1)",
        "healthy = llm._check_health() if hasattr(llm, '_check_health') else True",
        "library.LoRARequest('name', 7, path)",
        "event.get('attention_dp_rank')",
        "['trtllm-build', '--output_dir=x']",
        "worker.library.claims",
        "output = response.body\noutput.anything",
    ],
)
def test_the_check_lets_pass_what_is_asked_for_first_or_is_not_the_librarys(source: str):
    assert check(source).violations == []


def check(source: str) -> Usage:
    return check_source(source, library=frozenset({"has"}))


def own_names() -> frozenset[str]:
    """What the engine's ``Library`` has besides classes of TensorRT-LLM."""
    tree = ast.parse(IMPORTER.read_text())
    (library,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Library")
    fields = {
        node.target.id for node in library.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    return frozenset(fields | {node.name for node in library.body if isinstance(node, ast.FunctionDef)})
