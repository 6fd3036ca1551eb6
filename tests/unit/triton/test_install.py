"""Installing the embedded server: all or nothing."""

import os
import platform
from pathlib import Path

import pytest

from tandem.errors import TandemError
from tandem.triton import install
from tandem.triton.runtime import embedded_dir


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path))
    return tmp_path


def unpack_like_pip(directory: Path) -> None:
    """What the package holds, as far as the installer looks at it."""
    server = directory / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / install.python_minor() / "triton_python_backend_stub"
    for file in (stub, server / "bin" / "tritonserver", server / "backends" / "python" / "libtriton_python.so"):
        file.parent.mkdir(parents=True)
        file.write_text(file.name)


def test_stub_of_this_python_lies_beside_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_unpack", unpack_like_pip)
    target = install.install()
    assert target == embedded_dir()
    stub = target / "pytriton" / "tritonserver" / "backends" / "python" / "triton_python_backend_stub"
    assert stub.stat().st_mode & 0o111


def test_server_of_one_user_can_be_run_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, where root installs it and somebody else serves."""
    monkeypatch.setattr(install, "_unpack", unpack_like_pip)
    umask = os.umask(0o022)
    try:
        target = install.install()
    finally:
        os.umask(umask)
    assert target.stat().st_mode & 0o777 == 0o755


def test_second_install_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[Path] = []
    monkeypatch.setattr(install, "_unpack", lambda to: (unpacked.append(to), unpack_like_pip(to)))
    install.install()
    install.install()
    assert len(unpacked) == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, TandemError("environment", "pip failed")])
def test_interrupted_install_leaves_nothing_and_can_be_repeated(
    interruption: BaseException, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise interruption

    monkeypatch.setattr(install, "_unpack", interrupted)
    with pytest.raises(type(interruption) if isinstance(interruption, Exception) else KeyboardInterrupt):
        install.install()
    assert not embedded_dir().exists()
    monkeypatch.setattr(install, "_unpack", unpack_like_pip)
    install.install()
    assert sorted(path.name for path in (home / "triton").iterdir()) == sorted([embedded_dir().name, "install.lock"])


def test_what_a_killed_install_left_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left_over = home / "triton" / f"{embedded_dir().name}.partial-x1"
    left_over.mkdir(parents=True)
    monkeypatch.setattr(install, "_unpack", unpack_like_pip)
    install.install()
    assert not left_over.exists()


def test_other_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TandemError, match="needs Linux on aarch64 or x86_64, not Linux on riscv64"):
        install.install()


@pytest.mark.parametrize("libc", [("glibc", "2.31"), ("", "")])
def test_old_c_library_is_refused(libc: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(TandemError, match=r"needs glibc 2\.35 or newer"):
        install.install()


def test_failure_is_a_plain_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert install.main() == 1
    assert capsys.readouterr().err.startswith("error: the embedded Triton server needs Linux")
