"""Chat templates written for the tests in the manner of well-known models' templates."""

from __future__ import annotations

CHATML = """\
{%- if messages[0].role != "system" %}
{{- "<|im_start|>system\\nYou answer questions.<|im_end|>\\n" }}
{%- endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message["role"] + "\\n" + message["content"] + "<|im_end|>" }}
    {{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}
"""

LLAMA_3 = """\
{{- bos_token }}
{%- set ns = namespace(today="never") %}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if date_string is not defined %}{% set date_string = strftime_now("%Y") %}{% endif %}
{%- set ns.today = date_string %}
{%- if messages[0]["role"] == "system" %}
    {%- set system = messages[0]["content"] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " ~ ns.today ~ "\\n" ~ system }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- "\\n" }}{{ tool | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role in ("tool", "ipython") %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif "tool_calls" in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("Only one call at a time.") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- "<|python_tag|>" + call.name + "(" }}
        {%- for name, value in call.arguments | items %}
            {{- name + "=" + value | tojson }}{% if not loop.last %}, {% endif %}
        {%- endfor %}
        {{- ")<|eom_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>" + message["role"] + "<|end_header_id|>\\n\\n" }}
        {{- message["content"] | trim + "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""

GEMMA = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('A system message has no place here') }}{% endif %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate: user, assistant, user, ...') }}
{% endif %}
{% if message['role'] == 'assistant' %}{% set role = 'model' %}
{% else %}{% set role = message['role'] %}{% endif %}
{{ '<start_of_turn>' + role + '\\n' }}
{%- if message['content'] is string -%}
{{ message['content'] | trim }}
{%- else -%}
    {%- for item in message['content'] -%}
        {%- if item['type'] == 'image' -%}<start_of_image>
        {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
        {%- endif -%}
    {%- endfor -%}
{%- endif -%}
{{ '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}
"""

QWEN_TOOLS = """\
{%- macro described(tool) %}{{ tool | tojson }}{% endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" + described(tool) }}{%- endfor %}
    {{- "\\n</tools>\\n<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and not
           (message.content.startswith('<tool_response>') and message.content.endswith('x')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "system" and tools %}{%- continue %}{%- endif %}
    {%- if message.role == "assistant" %}
        {%- set content = message.content or '' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' ~ reasoning.strip('\\n') ~ '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- generation %}{{- content.lstrip('\\n') }}{%- endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{% set call = call.function %}{% endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.stop is defined %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

ODDITIES = """\
{# white space, filters and tests that templates lean on #}
   {% if true %}
     indented {{ "{:>8}".format("x") }} {{ "%05.1f" | format(3.14159) }}
   {% endif %}
{{ messages | map(attribute="role") | join(",") }} {{ messages | length }} {{ tools is none }}
{{ dict(a=1, b=[1, 2]) | tojson }} {{ "<&'\\"é>" | tojson }}
{{ {"b": 1, "a": 2} | tojson(sort_keys=true) }}
{{ messages | selectattr("role", "equalto", "user") | list | length }} {{ "a-b-c".split("-")[1:] }}
{{ none }} {{ 1 == 1.0 }} {{ 7 // 2 }} {{ 2 ** 10 }} {{ missing is defined }} {{ missing }}
{{ "text" | upper | replace("T", "t") }} {{ [3, 1, 2] | sort | first }} {{ range(3) | list }}
{% set x %}captured{% endset %}{{ x }}{% filter upper %} shouted {% endfilter %}
{% for k, v in {"one": 1, "two": 2}.items() %}{{ k }}={{ v }};{% endfor %}
{{ unk_token is defined }} {{ pad_token is defined }} {{ eos_token }} {{ documents is none }}
{{ "x" if messages[0].name is defined else "anonymous" }} {{ messages[-1]["content"][:2] }}
{% generation %}{% set inside = 1 %}{{ inside }}{% endgeneration %}{{ inside is defined }}
"""

TEMPLATES = {
    "chatml": CHATML,
    "llama 3": LLAMA_3,
    "gemma": GEMMA,
    "qwen with tools": QWEN_TOOLS,
    "oddities": ODDITIES,
}
