"""Chat templates in the manner of the families we run, and conversations to render with them.

Knows: Jinja as chat templates use it. Does not know: who renders it.
"""

from __future__ import annotations

from typing import Any

CHATML = """{% for message in messages %}
{% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}
{% endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{% endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% endif %}
"""

LLAMA3 = """{{- bos_token }}
{%- set today = strftime_now('%d %b %Y') if date_string is not defined else date_string %}
{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nToday: ' ~ today ~ '\n\n' ~ system ~ '<|eot_id|>' }}
{%- if tools is not none and not tools_in_user_message %}
    {%- for tool in tools %}{{ tool | tojson(indent=4) }}{{ '\n\n' }}{% endfor %}
{%- endif %}
{%- for m in messages %}
    {%- if m.tool_calls is defined and m.tool_calls %}
        {%- if m.tool_calls | length != 1 %}{{ raise_exception('one call at a time') }}{% endif %}
        {%- set call = m.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
        {{- '{"name": "' + call.name + '", "parameters": ' + (call.arguments | tojson) + '}<|eot_id|>' }}
    {%- elif m.role in ['tool', 'ipython'] %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\n\n' }}
        {%- if m.content is mapping or m.content is iterable and m.content is not string %}
            {{- m.content | tojson }}
        {%- else %}
            {{- m.content }}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% else %}{{ 'Default.' }}{% endif %}
    {{- '\n\n# Tools\n<tools>' }}
    {%- for tool in tools %}{{ '\n' }}{{ tool | tojson }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or
           (message.role == 'assistant' and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}{{ '\n' + message.content }}{% endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}{{ tool_call.name }}{{ '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}{{ '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{ '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' }}{{ message.content }}{{ '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{ '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
"""

QWEN3 = """{%- set ns = namespace(searching=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == 'user' and not (message.content.startswith('<tool_response>')) %}
        {%- set ns.searching = false %}{%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == 'assistant' %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {% generation %}{{- content.lstrip('\n') }}{% endgeneration %}
        {{- '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set prefix = messages[0]['content'] + '\n\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
{%- if message['role'] == 'system' %}{% continue %}{% endif %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{{- ' ' + message['content'] | default('', true) + eos_token }}
{%- else %}
{{- raise_exception('Only user and assistant roles are supported!') }}
{%- endif %}{% endfor %}
"""

PHI3 = """{% for message in messages %}{% if message['role'] in ['system', 'user', 'assistant'] %}{{
'<|' ~ message['role'] ~ '|>\n' ~ message['content'] ~ '<|end|>\n'
}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"""

ODDITIES = """{%- macro show(value, depth=0) -%}
  {%- if value is mapping -%}{% for k, v in value | dictsort %}{{ '  ' * depth }}{{ k }}: {{ show(v, depth + 1) }}
{% endfor %}{%- elif value is string -%}{{ value | upper | replace('A', '@') }}
  {%- else -%}{{ value | tojson(sort_keys=true) }}{%- endif -%}
{%- endmacro -%}
{% set d = dict(a=1, b=[1, 2.5, none, true]) %}{{ show(d) }}
{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'eq', 'user') | list | length }}
{%- for m in messages if m.role == 'user' %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content[:5] }}{% endfor %}
{{ '<&>"é' | tojson }} {{ ['x'] | tojson(indent=2) }} {{ range(3) | list }} {{ "%s-%d" | format('a', 3) }} {{ 7 // 2 }}
{{ undefined_name }}|{{ messages[0].nothing }}|{{ messages[0].get('content', 'none') | length }}|{{ 2 ** 9 }}{# no #}
"""

TEMPLATES = {
    "ChatML": CHATML, "Llama 3": LLAMA3, "Qwen 2.5": QWEN25, "Qwen 3": QWEN3, "Gemma": GEMMA, "Mistral": MISTRAL,
    "Phi-3": PHI3, "oddities": ODDITIES,
}  # fmt: skip

USER = {"role": "user", "content": "  What is 2+2?\n<b>é\U0001f600</b> "}
ANSWER = {"role": "assistant", "content": "<think>\nsum\n</think>\n\n4 \n"}
SYSTEM = {"role": "system", "content": "Be brief.\nVery."}
CALL = {"type": "function", "id": "c1", "function": {"name": "add", "arguments": {"a": 1, "b": "é<", "c": [None, 1.5]}}}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The 'weather' <of> a place", "parameters": {"type": "object"}},
}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "a question": [USER],
    "system and question": [SYSTEM, USER],
    "several turns": [USER, ANSWER, {"role": "user", "content": "And 3+3?"}],
    "system and turns": [SYSTEM, USER, ANSWER, USER, ANSWER, USER],
    "an answer to go on from": [USER, ANSWER],
    "a tool call": [
        SYSTEM, USER, {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"sum": 3}'}, {"role": "tool", "content": "again"}, ANSWER, USER,
    ],
    "reasoning apart": [USER, {"role": "assistant", "content": "4", "reasoning_content": "two and two"}],
    "two users": [USER, USER],
    "an empty message": [{"role": "user", "content": ""}],
}  # fmt: skip
