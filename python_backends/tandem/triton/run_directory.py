"""The directory of one run: resolved deployment, laid out models, logs. A lock tells whether its owner lives."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import IO

from tandem.errors import TandemError
from tandem.triton.processes import end_run

_KEEP = 20
"""Ended runs whose logs are kept."""


class RunDirectory:
    """``<home>/run/<deployment name>-<pid>/``, owned by this process until ``close``."""

    def __init__(self, path: Path, run_id: str, lock: IO[str] | None = None) -> None:
        """``lock``: None for one that is only talked of."""
        self.path = path
        self.run_id = run_id
        """Marks the run's processes and shared memory."""
        self.deployment_file = path / "deployment.json"
        self.models = path / "models"
        self.logs = path / "logs"
        self._lock = lock

    @classmethod
    def create(cls, home: Path, name: str) -> RunDirectory:
        """A fresh directory; cleans up after runs whose owner died, keeping the newest logs.

        Raises:
            TandemError: ``environment``, when it cannot be written.
        """
        root = home / "run"
        try:
            root.mkdir(parents=True, exist_ok=True)
            with (root / "lock").open("w") as one_at_a_time:
                fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
                _clean_up(root)
                path = _make_unique(root, f"{name}-{os.getpid()}")
                run_id = secrets.token_hex(4)
                (path / "logs").mkdir()
                lock = (path / "lock").open("w")
                fcntl.flock(lock, fcntl.LOCK_EX)
                (path / "run_id").write_text(run_id)
        except OSError as error:
            raise TandemError("environment", f"cannot write the run directory in {root}: {error}") from error
        return cls(path, run_id, lock)

    def close(self) -> None:
        """Give up ownership; the logs stay for a while, the rest goes."""
        shutil.rmtree(self.models, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def _make_unique(root: Path, name: str) -> Path:
    """``root/name``, with a number added where one process runs several servers."""
    for number in range(1, 1000):
        path = root / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise TandemError("environment", f"{root} holds too many directories {name}-…; remove them")


def _clean_up(root: Path) -> None:
    """End what dead runs left behind, and forget all but the newest of them."""
    ended = [path for path in root.iterdir() if path.is_dir() and not _is_owned(path)]
    for path in ended:
        marker = path / "run_id"
        if marker.is_file():
            end_run(marker.read_text(), grace_s=0)
            shutil.rmtree(path / "models", ignore_errors=True)
            marker.unlink(missing_ok=True)
    ended.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for path in ended[_KEEP:]:
        shutil.rmtree(path, ignore_errors=True)


def _is_owned(path: Path) -> bool:
    """Whether the process that made the directory still holds its lock."""
    try:
        with (path / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
