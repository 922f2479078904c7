"""Bounds on the rendering of a chat template: turns of its loops, calls of its macros, its output.

Counted, not timed: the same conversation is always refused or never.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context

MAX_STEPS = 250_000  # about a second, and more than any context has room for
MAX_OUTPUT_CHARS = 1 << 25

# No template can spell this name, so none can read or replace what it holds.
_BUDGET = "<budget>"


class _Budget:
    def __init__(self) -> None:
        self.left = MAX_STEPS


def bounded_template(environment: jinja2.Environment, tree: nodes.Template) -> jinja2.Template:
    """Compile `tree`, in which each turn of a loop and each call of a macro now takes a step."""
    for loop in tree.find_all(nodes.For):
        if loop.test is None:
            loop.body.insert(0, _statement(loop))
        else:  # which is asked for turns that are left out, too
            loop.test = nodes.And(_step(), loop.test)
    for macro in tree.find_all(nodes.Macro):
        macro.body.insert(0, _statement(macro))
    for block in tree.find_all(nodes.CallBlock):
        block.body.insert(0, _statement(block))
    tree.set_environment(environment)
    return environment.from_string(tree)


def render_bounded(template: jinja2.Template, names: Mapping[str, Any]) -> str:
    """Render what `bounded_template` made.

    Raises:
        jinja2.TemplateError: it takes more than MAX_STEPS or gives more than MAX_OUTPUT_CHARS.
    """
    pieces, size = [], 0
    for piece in template.generate({**names, _BUDGET: _Budget()}):
        pieces.append(piece)
        size += len(piece)
        if size > MAX_OUTPUT_CHARS:
            raise jinja2.TemplateError(f"gives more than {MAX_OUTPUT_CHARS} characters")
    return "".join(pieces)


def take_step(context: Context) -> bool:
    """Called by compiled templates; always true."""
    budget: _Budget = context.parent[_BUDGET]
    budget.left -= 1
    if budget.left < 0:
        raise jinja2.TemplateError(f"takes more than {MAX_STEPS} turns of loops and macros")
    return True


def _step() -> nodes.Call:
    name = nodes.ImportedName(f"{__name__}.{take_step.__name__}")
    return nodes.Call(name, [nodes.ContextReference()], [], None, None)


def _statement(place: nodes.Node) -> nodes.ExprStmt:
    return nodes.ExprStmt(_step(), lineno=place.lineno)
