"""A checkpoint folder without weights, for the scripted engine."""

from __future__ import annotations

from pathlib import Path

from tiny_tokenizers import tiny_backend

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_text_folder(folder: Path) -> None:
    """A byte tokenizer and a ChatML template."""
    tiny_backend().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHATML)
