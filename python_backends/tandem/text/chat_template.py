"""Chat templates: Jinja, with the names and switches that ``transformers`` gives them (``apply_chat_template``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tandem.errors import TandemError


class ChatTemplate:
    """One model's template. Sandboxed: it comes with the checkpoint and may not touch the process."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """``tokens``: texts of special tokens by name (``bos_token``, ``eos_token``, …).

        Raises:
            TandemError: ``invalid_request``: it is not a Jinja template.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise TandemError("invalid_request", f"chat_template is not a Jinja template: {error}") from error
        self._tokens = dict(tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for these messages, up to where the answer begins.

        Raises:
            TandemError: ``invalid_request``, with the template's own reason (a role it does not know, for one).
        """
        try:
            return self._template.render(
                messages=messages, tools=None, documents=None, add_generation_prompt=True, **self._tokens
            )
        except Exception as error:  # it is a program, and fails as programs do
            raise TandemError("invalid_request", f"messages: the chat template refuses them: {error}") from error


class _Generation(Extension):
    """``{% generation %}`` … ``{% endgeneration %}`` marks the answers for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (declared so by jinja2)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML; prompts are not HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(format: str) -> str:
    return datetime.now().strftime(format)
