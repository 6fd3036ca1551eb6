"""Finding the Triton server and the library of Python."""

import sys
from pathlib import Path

import pytest

from tandem.errors import TandemError
from tandem.triton import libpython, runtime
from tandem.triton.runtime import find_runtime


@pytest.fixture
def server_dir(tmp_path: Path) -> Path:
    """A directory as in NVIDIA's container."""
    root = tmp_path / "tritonserver"
    for file in (
        "bin/tritonserver",
        "backends/python/libtriton_python.so",
        "backends/python/triton_python_backend_stub",
        "lib/libtritonserver.so",
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text("")
        (root / file).chmod(0o755)
    return root


def test_given_directory_wins(server_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_TRITON_DIR", str(server_dir))
    found = find_runtime()
    assert found.binary == server_dir / "bin" / "tritonserver"
    assert not found.embedded


def test_server_on_the_path_comes_next(server_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_TRITON_DIR", raising=False)
    monkeypatch.setenv("PATH", str(server_dir / "bin"))
    assert find_runtime().backends == server_dir / "backends"


def test_incomplete_directory_is_named(server_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (server_dir / "backends" / "python" / "libtriton_python.so").unlink()
    monkeypatch.setenv("TANDEM_TRITON_DIR", str(server_dir))
    with pytest.raises(TandemError, match=r"has no backends/python/libtriton_python\.so.*TANDEM_TRITON_DIR"):
        find_runtime()


def test_missing_server_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("TANDEM_TRITON_DIR", ""), ("PATH", ""), ("TANDEM_HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(runtime, "_CONTAINER_DIR", tmp_path / "no")
    with pytest.raises(TandemError, match=r"-m tandem\.triton\.install"):
        find_runtime()


def test_unfit_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "python_minor", lambda: "3.13")
    with pytest.raises(TandemError, match=r"3\.10, 3\.11, 3\.12; this is Python 3\.13"):
        runtime.check_python()


def test_libpython_of_this_python_is_found() -> None:
    found = libpython.find_libpython()
    assert found.is_file()
    assert f"libpython3.{sys.version_info.minor}" in found.name


def test_missing_libpython_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libpython, "python_minor", lambda: "3.99")
    with pytest.raises(TandemError, match=r"libpython3\.99\.so\.1\.0.*apt install libpython3\.99.*--enable-shared"):
        libpython.find_libpython()


def test_library_path_gets_a_link_not_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    library = tmp_path / "elsewhere" / "libpython.so"
    library.parent.mkdir()
    library.write_text("python")
    given = runtime.TritonRuntime(Path("b"), Path("k"), None, (Path("/bundled"),), library, embedded=True)
    link_dir = tmp_path / "lib"
    for _ in range(2):  # twice: a second server of the same run directory must not fail
        assert given.environment(link_dir, "/mine") == {"LD_LIBRARY_PATH": f"{link_dir}:/bundled:/mine"}
    assert [link.resolve() for link in link_dir.iterdir()] == [library]
