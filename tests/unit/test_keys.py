"""The handle key: where it comes from, and that it can be changed while it is used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tandem import keys as module
from tandem.errors import TandemError
from tandem.keys import Keys, access_word, has_access, load_keys, mac

OLD, NEW, NEWER = (bytes([n]) * 32 for n in (1, 2, 3))
DATA = b"data"


class Clock:
    """Time for ``Keys``, which passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def write(file: Path, at: float, *keys: bytes) -> None:
    """The file as of that time."""
    file.write_text("\n".join(key.hex() for key in keys) + "\n")
    os.utime(file, (at, at))


def load(file: Path) -> Keys:
    return load_keys({"TANDEM_HANDLE_KEY_FILE": str(file)})


def test_key_comes_from_the_environment() -> None:
    assert load_keys({"TANDEM_HANDLE_KEY": OLD.hex()}).signing == OLD


@pytest.mark.parametrize("value", [None, "", "zz" * 32, "00" * 31, "00" * 33, " ".join(["00" * 32] * 3)])
def test_bad_key_says_how_to_make_one_and_keeps_the_secret(value: str | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(value or "")
    for environment in ({"TANDEM_HANDLE_KEY": value or ""}, {"TANDEM_HANDLE_KEY_FILE": str(file)}):
        with pytest.raises(TandemError, match="openssl rand -hex 32") as error:
            load_keys(environment)
        assert not value or value not in str(error.value)


def test_a_new_key_is_accepted_at_once_and_signs_when_all_can_have_it(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "key"
    write(file, 0.0, OLD)
    keys = load(file)
    assert not keys.verify(DATA, mac(DATA, NEW))
    write(file, clock.now, NEW, OLD)
    assert keys.verify(DATA, mac(DATA, NEW))
    assert keys.verify(DATA, mac(DATA, OLD))
    for passed, expected in ((0.0, OLD), (module.REST_S - 1, OLD), (1.0, NEW)):
        clock.now += passed
        assert keys.signing == expected
    write(file, clock.now, NEW)
    clock.now += module.LOOK_EVERY_S
    assert keys.signing == NEW
    assert not keys.verify(DATA, mac(DATA, OLD))


def test_who_starts_in_between_does_as_all_others(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "key"
    write(file, clock.now, NEW, OLD)
    clock.now += module.REST_S / 2
    keys = load(file)
    assert keys.signing == OLD
    clock.now += module.REST_S / 2
    assert keys.signing == load(file).signing == NEW


def test_of_two_keys_the_older_falls_out_with_the_next(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "key"
    write(file, 0.0, NEW, OLD)
    keys = load(file)
    write(file, clock.now, NEWER, NEW)
    assert keys.verify(DATA, mac(DATA, NEWER))
    assert not keys.verify(DATA, mac(DATA, OLD))
    assert keys.signing == NEW


def test_who_only_verifies_forgets_a_key_that_was_taken_out(clock: Clock, tmp_path: Path) -> None:
    file = tmp_path / "key"
    write(file, 0.0, NEW, OLD)
    keys = load(file)
    assert keys.verify(DATA, mac(DATA, OLD))
    write(file, clock.now, NEW)
    clock.now += module.LOOK_EVERY_S
    assert not keys.verify(DATA, mac(DATA, OLD))


@pytest.mark.parametrize("content", [None, "", "no key"])
def test_a_file_that_is_broken_or_gone_changes_nothing(clock: Clock, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "key"
    write(file, 0.0, OLD)
    keys = load(file)
    file.unlink()
    if content is not None:
        file.write_text(content)
    clock.now += module.LOOK_EVERY_S
    assert keys.signing == OLD
    assert keys.verify(DATA, mac(DATA, OLD))


def test_access_is_for_those_with_a_key() -> None:
    keys = Keys([NEW, OLD])
    assert all(has_access(access_word(key), keys) for key in (NEW, OLD))
    assert not any(has_access(word, keys) for word in ("", "zz", NEW.hex(), access_word(NEWER)))
