"""What the endpoints work with: the engine, and the text side of the model it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from qwell import __version__
from qwell.runtime.chat_template import ChatTemplate, load_chat_template
from qwell.runtime.checkpoint.generation_config import GenerationDefaults, load_generation_defaults
from qwell.runtime.messages import EngineInfo
from qwell.runtime.tokenizer import Tokenizer
from qwell.server.engine_client import EngineClient
from qwell.server.errors import model_not_found
from qwell.server.grammar_checker import GrammarChecker
from qwell.server.lifecycle import Lifecycle


@dataclass(frozen=True)
class TextSide:
    """The parts of a checkpoint that the server process reads itself."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    defaults: GenerationDefaults


def load_text_side(folder: Path) -> TextSide:
    """Tokenizer, chat template and sampling defaults of a checkpoint. Raises CheckpointError."""
    tokenizer = Tokenizer.from_dir(folder)
    return TextSide(
        tokenizer, load_chat_template(folder), load_generation_defaults(folder, tokenizer)
    )


@dataclass(frozen=True)
class Service:
    """One served model; `served_model_names` is empty where any name will do."""

    engine: EngineClient
    text: TextSide
    served_model_names: tuple[str, ...]
    max_body_bytes: int
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    grammars: GrammarChecker = field(default_factory=GrammarChecker)

    def check_model(self, model: str) -> None:
        """Raises HttpError (404) for a model that is not served."""
        if self.served_model_names and model not in self.served_model_names:
            raise model_not_found(model)


def system_fingerprint(info: EngineInfo) -> str:
    """What, besides the request, decides the tokens: the version and what it runs on."""
    return f"qwell-{__version__}-{info.device}-{info.dtype}-{info.weights}"
