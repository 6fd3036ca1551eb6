"""The command line: ``tandem serve | generate | status | doctor``. One file per command."""

from tandem.cli.app import app

__all__ = ["app"]
