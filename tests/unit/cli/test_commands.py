"""The commands as people call them: exit codes, and sentences instead of tracebacks."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DEPLOYMENT = """
name = "probe"
[model]
path = "model"
[server]
http_port = {http_port}
grpc_port = 0
metrics_port = 0
[[worker]]
name = "prefill_0"
stage = "prefill"
{extra}
[[worker]]
name = "decode_0"
stage = "decode"
"""


def tandem(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "tandem"), *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "200", **environment},
    )


def write_deployment(directory: Path, http_port: int = 0, extra: str = "") -> str:
    path = directory / "deployment.toml"
    path.write_text(DEPLOYMENT.format(http_port=http_port, extra=extra))
    return str(path)


def check_refused(done: subprocess.CompletedProcess[str], code: int, *expected: str) -> None:
    assert done.returncode == code, done.stderr
    for text in expected:
        assert text in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.startswith("error: ")


def test_help_names_every_command() -> None:
    done = tandem("--help")
    assert done.returncode == 0
    for command in ("serve", "build", "generate", "status", "explain", "doctor"):
        assert command in done.stdout


def test_missing_deployment_file() -> None:
    check_refused(tandem("serve", "no/such.toml"), 2, "no/such.toml", "No such file")


def test_wrong_field_is_named(tmp_path: Path) -> None:
    done = tandem("serve", write_deployment(tmp_path, extra="max_batch_size = 0"))
    check_refused(done, 2, "max_batch_size", "deployment.toml")


def test_taken_port_is_named_with_its_option(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        by_file = tandem("serve", write_deployment(tmp_path, http_port=port))
        by_option = tandem("serve", write_deployment(tmp_path), "--grpc-port", str(port))
    check_refused(by_file, 1, f"127.0.0.1:{port}", "--http-port")
    check_refused(by_option, 1, f"127.0.0.1:{port}", "--grpc-port")


def test_a_part_that_is_none_is_refused_with_those_that_are(tmp_path: Path) -> None:
    done = tandem("serve", write_deployment(tmp_path), "--only", "gateway,decode_7")
    check_refused(done, 2, "'decode_7' is no part of the deployment; it has gateway, prefill_0, decode_0")


def test_one_of_several_servers_needs_a_key_that_the_others_know(tmp_path: Path) -> None:
    spread = write_deployment(tmp_path, extra='address = "10.0.0.1:8001"')
    done = tandem("serve", spread, "--only", "decode_0", TANDEM_HANDLE_KEY="")
    check_refused(done, 2, "TANDEM_HANDLE_KEY", "the same for all parts of a deployment", "openssl rand")


def test_missing_model_is_said_before_anything_starts(tmp_path: Path) -> None:
    done = tandem("doctor", write_deployment(tmp_path))
    assert done.returncode == 1
    assert "config.json, tokenizer.json, *.safetensors" in done.stdout
    assert "build/convert.py" in done.stdout
    assert done.stderr == "error: not ready to serve 'probe': see model above\n"


def test_doctor_names_every_taken_port_option(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        done = tandem("doctor", write_deployment(tmp_path, http_port=listener.getsockname()[1]))
    assert "--http-port" in done.stdout
    assert done.stderr == "error: not ready to serve 'probe': see model, ports above\n"


def test_doctor_without_a_triton_server_says_how_to_get_it(tmp_path: Path) -> None:
    done = tandem("doctor", write_deployment(tmp_path), TANDEM_HOME=str(tmp_path))
    assert "-m tandem.triton.install" in "".join(line.strip() for line in done.stdout.splitlines())
    assert done.returncode == 1


@pytest.mark.parametrize("command", [("generate", "Hello", "--url"), ("status", "--url")])
def test_no_server_says_how_to_start_one(command: tuple[str, ...]) -> None:
    with socket.socket() as reserved:  # bound, but nobody listens
        reserved.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{reserved.getsockname()[1]}"
        check_refused(tandem(*command, address), 1, f"no server answers at {address}", "tandem serve")


def test_http_address_is_refused_with_an_example() -> None:
    check_refused(tandem("status", "--url", "http://127.0.0.1:8000"), 2, "--url", "127.0.0.1:8001")


def test_url_and_deployment_exclude_each_other(tmp_path: Path) -> None:
    done = tandem("generate", "x", "--url", "127.0.0.1:1", "--deployment", write_deployment(tmp_path))
    check_refused(done, 2, "--url and --deployment")


def test_system_message_needs_the_chat_template() -> None:
    check_refused(tandem("generate", "x", "--raw", "--system", "y"), 2, "--system", "--raw")


def test_unknown_option_is_a_usage_error() -> None:
    done = tandem("generate", "x", "--temprature", "1")
    assert done.returncode == 2
    assert "--temprature" in done.stderr


def test_a_build_that_cannot_fit_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    recipe = (Path(__file__).parents[3] / "build/recipes/llama-3.3-70b.toml").read_text()
    (tmp_path / "r.toml").write_text(recipe.replace('gpu = "h100"', 'gpu = "a100-40"'))
    done = tandem("build", str(tmp_path / "r.toml"), "--out", str(tmp_path / "out"))
    check_refused(done, 2, "prefill: 4 x A100 40 GB", "What would fit: tensor_parallel_size = 8")
    assert not (tmp_path / "out").exists()


def test_a_dry_run_starts_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    done = tandem("serve", write_deployment(tmp_path), "--dry-run", "--for-image", TANDEM_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert "--model-repository=/opt/tandem/.tandem/run/probe-PID/models" in done.stdout
    assert "tandem.engines.server" in done.stdout
    assert not (tmp_path / "home").exists()
