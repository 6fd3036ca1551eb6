"""Runs a command in a terminal and draws what it showed: ``python docs/pictures/terminal.py OUT.svg COMMAND …``.

Nothing is made up: the picture is the command's own output, without the progress that it wiped away again.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

COLUMNS = 100
_WIPED_LINE = re.compile(r"[^\n]*\x1b\[2K")
_WIPED_LINE_ABOVE = re.compile(r"[^\n]*\n(\x1b\[\?25h)?\x1b\[1A\x1b\[2K")
_CONTROLS = re.compile(r"\x1b\[\??[0-9;]*[A-Zhl]|\r")
_WEB_FONTS = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)


def run(command: list[str]) -> str:
    """What a command writes to its terminal, escape sequences included; ends this process where the command fails."""
    shown = bytearray()

    def keep(terminal: int) -> bytes:
        data = os.read(terminal, 65536)
        shown.extend(data)
        return data

    status = os.waitstatus_to_exitcode(pty.spawn(command, keep))
    if status:
        sys.exit(status)
    return shown.decode().replace("\r\n", "\n")


def last_state(shown: str) -> str:
    """The text that stays on the screen, with its colours."""
    return _CONTROLS.sub("", _WIPED_LINE.sub("", _WIPED_LINE_ABOVE.sub("", shown))).strip("\n")


def draw(command: list[str], shown: str) -> str:
    """The terminal as SVG."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text(f"$ {shlex.join(command)}", style="bold green"))
    console.print(Text.from_ansi(shown))
    return _WEB_FONTS.sub("", console.export_svg(title="", theme=MONOKAI, unique_id="tandem"))


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(COLUMNS)
    words = sys.argv[2:]
    Path(sys.argv[1]).write_text(draw(words, last_state(run(words))) + "\n")
