"""Where Tandem finds its parts and keeps its files."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from tandem.errors import TandemError


def project_root() -> Path:
    """The checkout this package lies in: it holds ``model_repository/`` and ``deployments/``."""
    return Path(__file__).resolve().parents[3]


def home_dir() -> Path:
    """Where runtime, models and run directories are kept: ``TANDEM_HOME``, or ``.tandem`` in the checkout."""
    given = os.environ.get("TANDEM_HOME")
    return Path(given).expanduser().resolve() if given else project_root() / ".tandem"


def own_key_file(*, make: bool = False) -> Path:
    """The handle key of deployments that are one server; ``make``: there is one afterwards. Raises OSError."""
    file = home_dir() / "handle_key"
    if make and not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_name(f"handle_key-{os.getpid()}-{secrets.token_hex(4)}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32) + "\n")
        try:
            os.link(draft, file)  # who comes second takes the first one's
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return file


def templates_dir() -> Path:
    """The templates of the Triton models.

    Raises:
        TandemError: ``environment``, when the package does not lie in a checkout.
    """
    templates = project_root() / "model_repository"
    if not templates.is_dir():
        raise TandemError(
            "environment",
            f"there is no {templates}: run Tandem from its checkout (pip install -e .), which holds the Triton models",
        )
    return templates
