"""Chat templates against the renderer of transformers."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tandem.errors import TandemError
from tandem.text.chat_template import ChatTemplate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
MESSAGES = [
    {"role": "system", "content": "Be brief & kind: <b>yes</b>"},
    {"role": "user", "content": "Größe 👋 {{ 7 * 7 }} {% raw %}"},
    {"role": "assistant", "content": "'quoted' \"twice\"\\n"},
    {"role": "user", "content": ""},
]

TEMPLATES = {
    "blocks and blanks": """
        {%- for message in messages %}
            {% if message.role == 'system' -%}
                [{{ message.content | trim }}]
            {%- else %}
        {{ loop.index }} {{ message['content'] }}
            {% endif %}
        {% endfor %}
        {% if add_generation_prompt %}
    assistant:
        {% endif %}
    """,
    "special tokens": "{{ bos_token }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}",
    "json": "{{ messages | tojson }}{{ messages | tojson(indent=2) }}",
    "break and continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}"
    "{% if m.role == 'assistant' %}{% break %}{% endif %}{% endfor %}",
    "generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "slices": "{% for m in messages[1:] | reverse %}{{ m.content.split('x')[0] }}{% endfor %}{{ messages[-1].role }}",
    "no tools": "{% if tools is not none %}tools{% endif %}{{ documents is none }}{{ undefined_one }}",
    "date": "{{ strftime_now('%Y') }}",
    "macro": "{% macro say(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_same_as_transformers(name: str) -> None:
    source = TEMPLATES[name]
    expected, _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert ChatTemplate(source, TOKENS).render(MESSAGES) == expected[0]


def test_the_template_s_own_objections_reach_the_client() -> None:
    template = ChatTemplate("{{ raise_exception('only user and assistant roles') }}", {})
    with pytest.raises(TandemError, match=r"messages: .*only user and assistant roles") as caught:
        template.render(MESSAGES)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0]['content'] + messages[0]['name'] }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].content.nothing() }}",
        "{{ (messages | first).role.index('zzz') }}",
        "{{ 1 // 0 }}",
    ],
)
def test_what_a_template_cannot_render_is_an_error_with_a_code(source: str) -> None:
    with pytest.raises(TandemError, match="messages: ") as caught:
        ChatTemplate(source, {}).render(MESSAGES)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("source", ["{% for %}", "{{ messages", "{% endgeneration %}", "{% nothing %}"])
def test_a_broken_template_is_refused(source: str) -> None:
    with pytest.raises(TandemError, match="chat_template is not a Jinja template"):
        ChatTemplate(source, {})


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    messages = [dict(message) for message in MESSAGES]
    with pytest.raises(TandemError):
        ChatTemplate(source, {}).render(messages)
    assert messages == MESSAGES
