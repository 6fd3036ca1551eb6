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
_PARTS = re.compile(r"\x1b\[(?P<up>\d*)A|(?P<wipe>\x1b\[2K)|\x1b\[\?\d+[hl]|\r|(?P<feed>\n)|(?P<text>\x1b\[[\d;]*m|.)")
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
    """The text that stays on the screen, with its colours: enough of a terminal for what rich and make write."""
    lines, row = [""], 0
    for part in _PARTS.finditer(shown):
        if part["up"] is not None:
            row = max(0, row - int(part["up"] or 1))
        elif part["wipe"]:
            lines[row] = ""
        elif part["feed"]:
            row += 1
            lines += [""] * (row == len(lines))
        else:
            lines[row] += part["text"] or ""
    return "\n".join(lines).strip("\n")


def draw(command: list[str], shown: str) -> str:
    """The terminal as SVG."""
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True, color_system="truecolor")
    typed = shlex.join([Path(command[0]).name, *command[1:]])
    console.print(Text(f"$ {typed}", style="bold green"))
    console.print(Text.from_ansi(shown), end="\n\n")  # the last line's lower edge is cut off
    return _WEB_FONTS.sub("", console.export_svg(title="", theme=MONOKAI, unique_id="tandem"))


if __name__ == "__main__":
    os.environ["COLUMNS"] = str(COLUMNS)
    words = sys.argv[2:]
    Path(sys.argv[1]).write_text(draw(words, last_state(run(words))) + "\n")
