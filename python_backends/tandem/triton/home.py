"""Where Tandem finds its parts and keeps its files."""

from __future__ import annotations

import os
from pathlib import Path

from tandem.errors import TandemError


def project_root() -> Path:
    """The checkout this package lies in: it holds ``model_repository/`` and ``deployments/``."""
    return Path(__file__).resolve().parents[3]


def home_dir() -> Path:
    """Where runtime, models and run directories are kept: ``TANDEM_HOME``, or ``.tandem`` in the checkout."""
    given = os.environ.get("TANDEM_HOME")
    return Path(given).expanduser().resolve() if given else project_root() / ".tandem"


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
