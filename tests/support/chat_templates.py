"""Chat templates as the Qwen generations have them, without what tests of the API do not need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving import FAKE_WORKER, ServerProcess
from tiny_tokenizers import tiny_backend
from tokenizers import Tokenizer

_THOUGHT = """\
{%- if m.reasoning_content %}
    {{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
"""
_JSON_EXAMPLE = (
    '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>'
)
_JSON_CALL = """\
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{{- call.function.arguments | tojson + '}\\n</tool_call>' }}
"""
_XML_EXAMPLE = "<tool_call>\\n<function=name>\\n<parameter=x>\\nvalue\\n</parameter>\\n</function>"
_XML_CALL = """\
{{- '\\n<tool_call>\\n<function=' + call.function.name + '>\\n' }}
{%- for name, value in call.function.arguments | items %}
    {{- '<parameter=' + name + '>\\n' + value | string + '\\n</parameter>\\n' }}
{%- endfor %}
{{- '</function>\\n</tool_call>' }}
"""
_NO_THOUGHT = (
    "{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)
_OPEN_THOUGHT = _NO_THOUGHT.replace("{% endif %}", "{% else %}{{- '<think>\\n' }}{% endif %}")


def _template(example: str, call: str, thought: str = "", answer: str = "") -> str:
    return f"""\
{{%- if tools %}}
    {{{{- '<|im_start|>system\\n<tools>' }}}}
    {{%- for tool in tools %}}{{{{- '\\n' + tool | tojson }}}}{{% endfor %}}
    {{{{- '\\n</tools>\\n{example}<|im_end|>\\n' }}}}
{{%- endif %}}
{{%- for m in messages %}}
    {{{{- '<|im_start|>' + m.role + '\\n' }}}}
    {thought}
    {{{{- m.content }}}}
    {{%- for call in m.tool_calls or [] %}}{call}{{% endfor %}}
    {{{{- '<|im_end|>\\n' }}}}
{{%- endfor %}}
{{%- if add_generation_prompt %}}{{{{- '<|im_start|>assistant\\n' }}}}{answer}{{% endif %}}
"""


QWEN2_5 = _template(_JSON_EXAMPLE, _JSON_CALL)
"""JSON calls, no thinking."""

QWEN3 = _template(_JSON_EXAMPLE, _JSON_CALL, _THOUGHT, _NO_THOUGHT)
"""JSON calls; the model opens its thinking itself, and `enable_thinking` can keep it from that."""

QWEN3_5 = _template(_XML_EXAMPLE, _XML_CALL, _THOUGHT, _OPEN_THOUGHT)
"""XML-like calls; the prompt opens the thinking."""


def server_of(
    template: str,
    folder: Path,
    worker: Sequence[str] = FAKE_WORKER,
    backend: Tokenizer | None = None,
    engine_options: dict[str, Any] | None = None,
) -> ServerProcess:
    """A server of this template and the byte tokenizer, or another, beside what `folder` has."""
    (backend or tiny_backend()).save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(template)
    return ServerProcess(folder, folder / "log", worker=worker, engine_options=engine_options)
