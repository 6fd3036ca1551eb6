"""The containers of one run: started by Compose, looked at and hurt by Docker, and all gone in the end."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from tandem.deployment import Server
from tandem.triton.ports import choose_ports
from tests.compose.machine import ROOT, compose_program, run

HEALTHY_S = 420.0
STOP_S = 150.0
OWNER = 10001
"""The user that containers run as."""
WORKERS = ("prefill", "decode", "group")

_ROUTING = """
[routing]
policy = "round_robin"    # every worker has its share, so that none is hurt in vain
conditional_disaggregation = false
"""
_LOADS = """
import json
from pathlib import Path
from tandem.cli.status import _elsewhere, _greet
from tandem.messages import HelloReply
replies = [(asked[0], _greet(asked)) for asked in _elsewhere(Path("deployments/served.toml"))]
loads = {n: [r.load.queued, r.load.running, r.load.handles_held] for n, r in replies if isinstance(r, HelloReply)}
print(json.dumps(loads))
"""


class Stack:
    """``with Stack() as stack:`` has secrets, a deployment and ports of its own; afterwards nothing is left."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.project = f"tandem-test-{secrets.token_hex(3)}"
        ports = choose_ports(Server(http_port=0, grpc_port=0, metrics_port=0))
        self.http_url, self.grpc_url = f"http://127.0.0.1:{ports.http}", f"127.0.0.1:{ports.grpc}"
        self.published = {ports.http, ports.grpc}
        self._home = Path(tempfile.mkdtemp(prefix=self.project))
        self.secrets = self._home / "secrets"
        program = compose_program()
        self._compose = [program] if program else ["docker", "compose"]
        text = (ROOT / "deployments/compose.toml").read_text()
        small = '[[worker]]\nthreads = 1\nkv_memory = "64MiB"\n'
        (self._home / "compose.toml").write_text(text.replace("[[worker]]\n", small) + _ROUTING)
        self._environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": self.project,
            "COMPOSE_PROFILES": "all,ranks",
            "TANDEM_IMAGE": image,
            "TANDEM_DEPLOYMENT": str(self._home / "compose.toml"),
            "TANDEM_SECRETS": str(self.secrets),
            "TANDEM_HTTP_PORT": str(ports.http),
            "TANDEM_GRPC_PORT": str(ports.grpc),
            "TANDEM_MEMORY": "3g",
        }

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # ------------------------------------------------------------ Compose

    def compose(self, *arguments: str, timeout: float = STOP_S) -> str:
        """One call of Compose."""
        return run(*self._compose, *arguments, timeout=timeout, env=self._environment, cwd=ROOT)

    def up(self, **scale: int) -> None:
        """Start what is not there, at the given numbers of containers, and wait until all are healthy."""
        wanted = [f"--scale={service}={count}" for service, count in scale.items()]
        self.compose("up", "-d", "--no-build", *wanted, timeout=HEALTHY_S)
        self.wait_healthy()

    def down(self) -> None:
        """Stop and remove everything; safe to repeat."""
        if self._home.exists():
            self.compose("down", "--volumes", "--timeout", "20", "--remove-orphans")
            shutil.rmtree(self._home)

    def left_over(self) -> list[str]:
        """Containers, networks and volumes of this run that are still there."""
        mine = f"label=com.docker.compose.project={self.project}"
        kinds = (("ps", "--all", "--quiet"), ("network", "ls", "--quiet"), ("volume", "ls", "--quiet"))
        return [found for kind in kinds for found in run("docker", *kind, "--filter", mine).split()]

    # ------------------------------------------------------------ containers

    def containers(self, *services: str) -> list[str]:
        """Names of the running containers of some services, all when none is named, in order."""
        found = []
        for service in services or ("gateway", *WORKERS, "rank"):
            filters = [
                f"label=com.docker.compose.{k}={v}" for k, v in (("project", self.project), ("service", service))
            ]
            arguments = [word for one in filters for word in ("--filter", one)]
            found += sorted(run("docker", "ps", "--format", "{{.Names}}", *arguments).split())
        return found

    def inspect(self, container: str) -> dict[str, Any]:
        """Everything that Docker knows about a container."""
        found: dict[str, Any] = json.loads(run("docker", "inspect", container))[0]
        return found

    def address(self, container: str) -> str:
        """On the network of the workers."""
        networks = self.inspect(container)["NetworkSettings"]["Networks"]
        return str(networks[f"{self.project}_default"]["IPAddress"])

    def wait_healthy(self, *services: str, timeout: float = HEALTHY_S) -> None:
        """Until all containers of some services are healthy; of all when none is named."""
        deadline = time.monotonic() + timeout
        while True:
            states = {c: self.inspect(c)["State"] for c in self.containers(*services)}
            ill = {c: s for c, s in states.items() if s.get("Health", {}).get("Status") != "healthy"}
            if states and not ill:
                return
            if time.monotonic() > deadline:
                said = {c: [one["Output"][-300:] for one in s["Health"]["Log"][-1:]] for c, s in ill.items()}
                raise RuntimeError(f"not healthy after {timeout:.0f} s: {said or 'no container'}")
            time.sleep(1.0)

    def execute(self, container: str, *command: str, stdin: str | None = None, timeout: float = 60.0) -> str:
        """Run a command in a container."""
        return run("docker", "exec", "-i", container, *command, input=stdin, timeout=timeout)

    def visit(
        self, script: str, *, network: str, volumes: tuple[str, ...] = (), user: str = "tandem", timeout: float = 120.0
    ) -> str:
        """Run a Python script in a further container of the same image, in a network of this run; what it printed."""
        mounts = [word for volume in volumes for word in ("--volume", volume)]
        options = [
            "--rm",
            "--interactive",
            "--network",
            f"{self.project}_{network}",
            "--cap-drop",
            "ALL",
            "--user",
            user,
            *mounts,
        ]
        command = ["docker", "run", *options, "--label", f"com.docker.compose.project={self.project}", self.image]
        return run(*command, "python", "-", input=script, timeout=timeout)

    def stolen(self) -> Path:
        """A directory with a worker's certificate, and nothing else."""
        place = self._home / "stolen"
        place.mkdir(exist_ok=True)
        for name in ("ca.pem", "certificate.pem", "key.pem"):
            shutil.copy(self.secrets / "worker" / name, place)
        for path in (place, *place.iterdir()):
            os.chown(path, OWNER, OWNER)
        return place

    def loads(self) -> dict[str, list[int]]:
        """Worker → requests queued and running there, and handles that nobody has redeemed."""
        (gateway,) = self.containers("gateway")
        found: dict[str, list[int]] = json.loads(self.execute(gateway, "python", "-", stdin=_LOADS))
        return found

    def wait_idle(self, timeout: float = 60.0) -> None:
        """Until no worker has anything of a request left. Health checks pass through as well."""
        deadline = time.monotonic() + timeout
        while any(map(any, (loads := self.loads()).values())):
            if time.monotonic() > deadline:
                raise RuntimeError(f"left at the workers: {loads}")
            time.sleep(0.5)

    # ------------------------------------------------------------ harm

    def kill(self, container: str) -> None:
        """As if its host's power went."""
        run("docker", "kill", container)

    def start(self, container: str) -> None:
        """Start one that was killed."""
        run("docker", "start", container)

    def pause(self, container: str) -> None:
        """Freeze all its processes."""
        run("docker", "pause", container)

    def resume(self, container: str) -> None:
        """Let them go on."""
        run("docker", "unpause", container)

    def disconnect(self, container: str) -> None:
        """Take it off the workers' network."""
        run("docker", "network", "disconnect", f"{self.project}_default", container)

    def connect(self, container: str) -> None:
        """Back again, under its service's name."""
        service = self.inspect(container)["Config"]["Labels"]["com.docker.compose.service"]
        run("docker", "network", "connect", "--alias", service, f"{self.project}_default", container)

    def crash(self, container: str) -> None:
        """End the Triton server inside."""
        script = "import psutil; [p.kill() for p in psutil.process_iter() if p.name() == 'tritonserver']"
        self.execute(container, "python", "-c", script)

    def restarts(self, container: str) -> int:
        """How often Docker has started it again by itself."""
        return int(self.inspect(container)["RestartCount"])
