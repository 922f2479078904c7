"""The chat page: its headers, and what it does in Chromium at the widths of a phone and a desk."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from serving import PATIENCE_S, ServerProcess, error_of
from tiny_tokenizers import tiny_backend

StartServer = Callable[..., ServerProcess]

SCREENSHOTS = Path(__file__).parents[2] / "build" / "screenshots"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
FLAGS += " --disable-background-networking --disable-component-update"
TEMPLATE = (
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ANSWER = """<think>Short, with code.</think>A **plan** with `code`:

## Saturday

1. Sleep
2. Walk to the [market](https://example.org/m)
   - bread

> Quoted words.

```python
print("long " * 40)  # longer than a phone is wide, so that this line has to be scrolled sideways
```

| City | Degrees |
|---|---|
| Paris | 21 |

The end, with https://example.org/bare in it."""


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose chat template can be told not to think."""
    folder = tmp_path_factory.mktemp("thinking")
    tiny_backend().save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    with ServerProcess(folder, folder / "log", model_name="Qwen/Qwen3-0.6B") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, which is no dependency of qwell: without it these tests are skipped."""
    reason = "needs playwright and Chromium (pip install playwright; apt-get install chromium)"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip(reason)
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=program, args=FLAGS.split())
        yield launched
        launched.close()


class Tab:
    """The page in a browser of its own, with what went wrong in it."""

    def __init__(self, browser: Any, server: ServerProcess, **options: Any) -> None:
        context = browser.new_context(**options)
        context.set_default_timeout(PATIENCE_S * 1e3)
        self.page = context.new_page()
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self.page.goto(f"{server.url}/")

    def _note(self, message: Any) -> None:
        if message.type == "error":
            self.errors.append(message.text)

    def send(self, text: str) -> None:
        self.page.locator("#question").fill(text)
        self.page.locator("#question").press("Enter")

    def wait_for_end(self) -> None:
        self.page.locator("#send").wait_for()

    def ask(self, text: str) -> None:
        self.send(text)
        self.page.locator("article").last.wait_for()
        self.wait_for_end()


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Tab]]:
    tabs: list[Tab] = []

    def open_one(server: ServerProcess, **options: Any) -> Tab:
        tabs.append(Tab(browser, server, **options))
        return tabs[-1]

    yield open_one
    for tab in tabs:
        tab.page.context.close()


class TestFile:
    def test_is_whole_in_itself(self, server: ServerProcess) -> None:
        answer = requests.get(f"{server.url}/", timeout=PATIENCE_S)

        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert not re.findall(r"<(?:script|img|iframe)[^>]+src|<link[^>]+href=\"http", answer.text)
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write", answer.text)

    def test_may_run_and_reach_nothing_else(self, server: ServerProcess) -> None:
        headers = requests.get(f"{server.url}/", timeout=PATIENCE_S).headers

        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["connect-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        for directive in ("script-src", "style-src"):
            assert re.fullmatch(r"'sha256-[\w+/]{43}='", policy[directive])
        assert headers["x-content-type-options"] == "nosniff"

    def test_can_be_turned_off(self, start_server: StartServer) -> None:
        server = start_server(ui=False, api_keys=("k",))

        for path in ("/", "/ui/model"):
            assert requests.get(f"{server.url}{path}", timeout=PATIENCE_S).status_code == 401
            headers = {"Authorization": "Bearer k"}
            answer = requests.get(f"{server.url}{path}", headers=headers, timeout=PATIENCE_S)
            error_of(answer, 404)

    def test_is_told_of_the_model_for_a_key(self, start_server: StartServer) -> None:
        server = start_server(api_keys=("k",), served_model_names=("qwen",))
        url = f"{server.url}/ui/model"

        assert requests.get(f"{server.url}/", timeout=PATIENCE_S).status_code == 200
        assert requests.get(url, timeout=PATIENCE_S).status_code == 401
        answer = requests.get(url, headers={"Authorization": "Bearer k"}, timeout=PATIENCE_S).json()
        assert answer.pop("version")
        assert answer == {"id": "qwen", "name": "tiny", "thinking": False, "context": 4096}


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_a_conversation(
    thinking: ServerProcess, open_tab: Callable[..., Tab], width: int, scheme: str
) -> None:
    viewport = {"width": width, "height": 844}
    tab = open_tab(thinking, viewport=viewport, color_scheme=scheme, is_mobile=width < 800)
    page = tab.page
    page.locator("#state", has_text="4096 tokens of context").wait_for()

    tab.ask(f"say:{ANSWER}")

    answer = page.locator("article.assistant")
    thoughts = answer.locator("details")
    assert thoughts.evaluate("node => node.open") is False
    assert thoughts.locator("summary").inner_text().startswith("Thought for")
    thoughts.locator("summary").click()
    assert thoughts.locator("div").inner_text() == "Short, with code."
    text = answer.locator(".text")
    assert text.locator("strong").inner_text() == "plan"
    assert text.locator("h3").inner_text() == "Saturday"
    assert text.locator("li").all_inner_texts() == ["Sleep", "Walk to the market", "bread"]
    assert text.locator("blockquote").inner_text() == "Quoted words."
    assert text.locator("pre").inner_text().startswith('print("long " * 40)')
    assert text.locator("td").all_inner_texts() == ["Paris", "21"]
    links = [link.get_attribute("href") for link in text.locator("a").all()]
    assert links == ["https://example.org/m", "https://example.org/bare"]
    assert "</think>" not in answer.inner_text()
    stats = answer.locator(".stats").inner_text()
    assert re.search(r"s to first token · [\d.]+ tokens/s · \d+ tokens$", stats)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"chat-{width}.png")
    assert tab.errors == []


def test_what_a_model_writes_is_never_markup(
    thinking: ServerProcess, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(thinking)
    attack = (
        "<img src=x onerror=alert(1)><script>alert(1)</script>\n\n"
        "[a](javascript:alert(1)) [b](data:text/html,x) **<b onclick=alert(1)>x</b>**\n\n"
        '```"><svg onload=alert(1)>\n<iframe src="javascript:alert(1)">\n```\n'
        "| <img src=x onerror=alert(1)> | b |\n|---|---|\n"
        '| [c](https://x.org/"onmouseover="alert) | d |'
    )
    dialogs: list[str] = []
    tab.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))

    tab.ask(f"say:{attack}")

    log = tab.page.locator("#log")
    assert log.locator("img, script, svg, iframe, b, [onclick], [onmouseover]").count() == 0
    hrefs = [link.get_attribute("href") for link in log.locator("a").all()]
    assert all(href.startswith("https://x.org/") for href in hrefs)
    assert dialogs == []
    assert tab.errors == []


@pytest.mark.parametrize("by", ["button", "key"])
def test_stop(thinking: ServerProcess, open_tab: Callable[..., Tab], by: str) -> None:
    tab = open_tab(thinking)
    tab.send("slow:" + "and on " * 300)
    tab.page.locator(".text", has_text="and on and").wait_for()

    if by == "button":
        tab.page.locator("#stop").click()
    else:
        tab.page.keyboard.press("Escape")

    tab.wait_for_end()
    assert tab.page.locator(".stats").inner_text().endswith("stopped")
    assert "and on and" in tab.page.locator(".assistant .text").inner_text()
    thinking.wait_until(lambda: thinking.report().startswith("running=0 "), "end of the request")
    assert tab.errors == []


def test_settings_tools_and_reasoning(
    thinking: ServerProcess, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(thinking)
    page = tab.page
    sent: list[dict[str, Any]] = []
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "The weather "},
        {"reasoning_content": "is asked for."},
        {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "weather"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"Paris"}'}}]},
    ]

    def answer(route: Any) -> None:
        sent.append(route.request.post_data_json)
        chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
        events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
        body = "".join(f"data: {event}\n\n" for event in events)
        route.fulfill(content_type="text/event-stream", body=body)

    page.route("**/v1/chat/completions", answer)
    page.locator("#open-settings").click()
    page.get_by_label("System prompt").fill("Be brief.")
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Top p").fill("0.9")
    page.get_by_label("Max tokens").fill("100")
    page.get_by_label("Think before answering").uncheck()
    page.get_by_role("button", name="Done").click()
    page.reload()

    tab.ask("How is the weather?")

    (body,) = sent
    assert body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is the weather?"},
    ]
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.5, 0.9, 100)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    thoughts, call = page.locator("article.assistant details").all()
    assert thoughts.locator("div").text_content() == "The weather is asked for."
    assert call.locator("summary").inner_text() == "Calls weather"
    assert call.locator("code").text_content() == '{"city": "Paris"}'
    assert tab.errors == []


def test_a_key_is_asked_for_and_kept(
    start_server: StartServer, open_tab: Callable[..., Tab]
) -> None:
    tab = open_tab(start_server(api_keys=("k3y",)))
    page = tab.page
    for key in ("wrong", "k3y"):
        page.get_by_label("API key").fill(key)
        page.keyboard.press("Enter")
        if key == "wrong":
            page.locator("#login-note").wait_for()
    page.locator("#state", has_text="tokens of context").wait_for()
    page.reload()
    page.locator("#state", has_text="tokens of context").wait_for()

    tab.ask("say:hello")

    assert page.locator(".text").inner_text() == "hello"
    assert all("401" in error for error in tab.errors)


def test_errors_are_shown(start_server: StartServer, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(start_server())
    page = tab.page
    tab.send("x" * 5000)
    assert "4096 tokens" in page.locator("article.note").inner_text()
    assert page.locator("#question").input_value() == "x" * 5000

    page.get_by_role("button", name="New chat").click()
    assert page.locator("article").count() == 0
    tab.ask("say:begun crash")

    assert "engine died" in page.locator("article.note").inner_text()
    assert page.locator(".text").inner_text() == "begun"
