"""The codec against transformers on the same files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers
from transformers import AutoTokenizer

from tandem.errors import TandemError
from tandem.text.codec import TextCodec
from tests.checkpoints import demo_model, make_random_model, make_tokenizer
from tests.unit.text.models import write_model
from tests.unit.text.strings import STRINGS

MESSAGES = [
    [{"role": "user", "content": "What is 2024 + 17? 👋"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 <b>&amp;</b>\n\n"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b {{ 1 + 1 }}"},
        {"role": "user", "content": ""},
    ],
]


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> TextCodec:
    return TextCodec(write_model(tmp_path_factory.mktemp("model")))


def _converted(directory: Path) -> Path:
    return make_random_model("llama", directory)


@pytest.mark.parametrize("model", [lambda _: demo_model(), _converted], ids=["demo", "converted"])
def test_same_as_transformers(tmp_path: Path, model: Callable[[Path], Path]) -> None:
    model_dir = model(tmp_path)
    codec, reference = TextCodec(model_dir), AutoTokenizer.from_pretrained(model_dir)
    assert len(STRINGS) >= 300
    for text in STRINGS:
        ids = codec.encode(text)
        assert ids == reference(text).input_ids, text
        assert codec.decode(ids) == reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        plain = reference(text, add_special_tokens=False).input_ids
        assert codec.encode(text, add_special_tokens=False) == plain, text
    for messages in MESSAGES:
        text = reference.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert codec.render_chat(messages) == text
        ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert codec.encode_chat(messages) == ids
    assert codec.bos_token_id in (reference.bos_token_id, 0)
    assert reference.eos_token_id in codec.eos_token_ids


def test_a_chat_begins_once(codec: TextCodec) -> None:
    ids = codec.encode_chat(MESSAGES[0])
    assert ids[:2] == [0, 1], "<|endoftext|> comes from the template alone"
    assert codec.encode("hi")[0] == 0, "a plain text gets it from the tokenizer"


def test_what_the_files_say(codec: TextCodec) -> None:
    assert codec.eos_token_ids == (0, 2)
    assert codec.bos_token_id == 0
    assert codec.vocab_size == make_tokenizer().get_vocab_size() + 8
    assert codec.max_model_len == 512


@pytest.mark.parametrize(("written", "expected"), [(2, (2,)), ([0, 2], (0, 2)), (None, ())])
def test_end_of_answer(tmp_path: Path, written: object, expected: tuple[int, ...]) -> None:
    assert TextCodec(write_model(tmp_path, generation_config={"eos_token_id": written})).eos_token_ids == expected


@given(st.text(max_size=50) | st.text(alphabet="a <|imstardxefo>_", max_size=80))
def test_a_text_has_no_fewer_tokens_than_its_bytes_ask_for(text: str) -> None:
    codec = TINY
    assert len(codec.encode(text)) * codec.max_token_bytes >= len(text.encode())


@given(st.text(alphabet="aếeᾂ가𝔸Ａ\u0302\u0301\u0313\u0300\u0345\u1100\u1161", max_size=50))
def test_the_bound_holds_when_characters_are_composed(text: str) -> None:
    ids = COMPOSING.encode(text, add_special_tokens=False)
    assert len(ids) * COMPOSING.max_token_bytes >= len(text.encode())


def test_lone_surrogates_are_refused(codec: TextCodec) -> None:
    with pytest.raises(TandemError, match="a lone surrogate at character 3") as caught:
        codec.encode("abc\ud83d")
    assert caught.value.code == "invalid_request"


def test_many_threads(codec: TextCodec) -> None:
    texts = [text * 20 for text in STRINGS]
    expected = [codec.encode(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(codec.encode, texts * 3)) == expected * 3
        assert list(pool.map(codec.decode, expected)) == [make_tokenizer().decode(ids) for ids in expected]


def test_without_a_chat_template(tmp_path: Path) -> None:
    codec = TextCodec(write_model(tmp_path, tokenizer_config={}))
    with pytest.raises(TandemError, match=r"messages: this model has no chat template; send .* as text_input"):
        codec.render_chat(MESSAGES[0])


def test_other_decoders_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(make_tokenizer().to_str())
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(TandemError, match=r"tokenizer\.json: decoder is \['WordPiece'\]; supported are ByteLevel"):
        TextCodec(write_model(tmp_path, tokenizer))


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_config", "generation_config", "config", "tandem"])
@pytest.mark.parametrize("content", [None, "{", "\xff"])
def test_broken_files_are_named(tmp_path: Path, name: str, content: str | None) -> None:
    path = write_model(tmp_path) / f"{name}.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TandemError, match="cannot read") as caught:
        TextCodec(tmp_path)
    assert caught.value.code == "invalid_request"
    assert str(path) in caught.value.message


def test_a_missing_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match=r"tandem\.json: context is None; expected a number above 0"):
        TextCodec(write_model(tmp_path, tandem={}))


def test_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, tandem.text.codec; sys.exit(bool({'torch', 'transformers', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def _composing() -> Tokenizer:
    tokenizer = Tokenizer.from_str(make_tokenizer().to_str())
    tokenizer.normalizer = normalizers.NFKC()
    return tokenizer


@pytest.fixture(scope="module", autouse=True)
def _codecs(tmp_path_factory: pytest.TempPathFactory) -> None:
    global TINY, COMPOSING
    TINY = TextCodec(write_model(tmp_path_factory.mktemp("tiny")))
    COMPOSING = TextCodec(write_model(tmp_path_factory.mktemp("composing"), _composing()))


TINY: TextCodec
COMPOSING: TextCodec
