"""HTML pages whole in themselves, and the policy that keeps them so."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.responses import Response

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)
_STYLE = re.compile(rb"<style>(.*?)</style>", re.DOTALL)


class HtmlPage(Response):
    """A page of which only its own <script> and <style> run, and they reach this server only."""

    media_type = "text/html"

    def __init__(self, content: bytes) -> None:
        policy = (
            "default-src 'none'",
            f"script-src {_hashes(_SCRIPT, content)}",
            f"style-src {_hashes(_STYLE, content)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
        headers = {
            "Content-Security-Policy": "; ".join(policy),
            "Cache-Control": "no-cache",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }
        super().__init__(content, headers=headers)


def _hashes(element: re.Pattern[bytes], page: bytes) -> str:
    digests = [hashlib.sha256(content).digest() for content in element.findall(page)]
    sources = [f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests]
    return " ".join(sources) or "'none'"
