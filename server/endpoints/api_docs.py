"""GET /openapi.json, and the same for people at /docs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from starlette.requests import Request

from qwell import __version__
from qwell.server.html_page import HtmlPage
from qwell.server.json_body import JsonResponse
from qwell.server.openapi import openapi_document

_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.55 ui-sans-serif, system-ui, "Segoe UI", Roboto, sans-serif; margin: 0 auto;
  max-width: 52rem; padding: 1.5rem 1.1rem 4rem; background: light-dark(#fbfaf8, #191918);
  color: light-dark(#23211e, #e9e6e0); }
h1 { font-size: 1.5rem; letter-spacing: -.02em; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; border-top: 1px solid #8884; padding-top: 1.2rem; }
code { font: .88em ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
h2 code { font-size: 1em; }
p, dd { margin: 0; max-width: 46rem; }
dl { display: grid; grid-template-columns: minmax(9rem, auto) 1fr; gap: .3rem 1.2rem; }
dt { font-weight: 600; overflow-wrap: anywhere; }
dd { color: light-dark(#6b665e, #a09a8f); overflow-wrap: anywhere; }
a { color: light-dark(#3d5a80, #9db8d9); }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
"""


async def show_openapi(_request: Request) -> JsonResponse:
    """The document."""
    return JsonResponse(openapi_document())


async def show_docs(_request: Request) -> HtmlPage:
    """The document as a page without a script."""
    return HtmlPage("".join(_page(openapi_document())).encode())


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield f'<link rel="icon" href="data:,"><title>qwell API</title><style>{_STYLE}</style></head>'
    yield f"<body><h1>qwell {escape(__version__)}</h1>"
    yield '<p>The API. The same for programs: <a href="openapi.json">openapi.json</a>.</p>'
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from _operation(method, path, operation)
    for name, schema in document["components"]["schemas"].items():
        yield f'<h2 id="{escape(name)}">{escape(name)}</h2>'
        yield f"<p>{escape(schema.get('description', ''))}</p><dl>"
        for field, field_schema in schema["properties"].items():
            required = " · required" if field in schema["required"] else ""
            yield f"<dt><code>{escape(field)}</code></dt><dd>{_type(field_schema)}{required}</dd>"
        yield "</dl>"
    yield "</body></html>"


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{method.upper()} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation['summary'])}.</p><dl>"
    if "requestBody" in operation:
        yield f"<dt>Body</dt><dd>{_content(operation['requestBody'])}</dd>"
    for status, response in operation["responses"].items():
        yield f"<dt>{escape(status)}</dt><dd>{_content(response)}</dd>"
    yield "</dl>"


def _content(part: Mapping[str, Any]) -> str:
    return " or ".join(_type(content["schema"]) for content in part["content"].values())


def _type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words of HTML."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return " or ".join(f"<code>{escape(repr(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of ({_type(schema['items'])})" if "items" in schema else "list"
    if "description" in schema:
        return escape(schema["description"])
    if schema.get("type") == "object" and "additionalProperties" in schema:
        return f"object of ({_type(schema['additionalProperties'])})"
    words = [escape(str(schema.get("type", "any JSON value")))]
    if "minimum" in schema or "maximum" in schema:
        words.append(f"{schema.get('minimum', '')} to {schema.get('maximum', '')}")
    return " ".join(words)
