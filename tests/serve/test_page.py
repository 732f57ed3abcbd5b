"""The chat page, driven in a browser."""

from collections.abc import Iterator
from shutil import which
from typing import Any

import pytest

from seektune.serve.app import PAGE, Served
from seektune.serve.limits import Limits
from tests.patience import HUNG

from .live import Live, endless, live, parrot
from .test_api import CHAT

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
BROWSER = which("chromium") or which("chromium-browser") or which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no browser is installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, headless=True, args=[*FLAGS, "--disable-sync"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    made = browser.new_page()
    made.set_default_timeout(1000 * HUNG)
    made.problems = []
    made.asked = []
    made.on("pageerror", lambda error: made.problems.append(str(error)))
    made.on("request", lambda request: made.asked.append(request.url))
    yield made
    assert made.problems == []
    made.close()


def test_page_loads_nothing_from_other_hosts(toy: Live) -> None:
    answer = toy.ask("GET", "/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    text = PAGE.read_text(encoding="utf-8")
    assert answer.text == text
    assert "http://" not in text
    assert "https://" not in text


def expected(server: Live, model: str, messages: list[dict[str, str]], **more: Any) -> str:
    body = server.post(CHAT, model=model, messages=messages, max_tokens=12, temperature=0, **more).body
    return str(body["choices"][0]["message"]["content"])


def say(page: Any, text: str) -> Any:
    page.fill("#ask", text)
    page.press("#ask", "Enter")
    page.wait_for_selector("#send:not([disabled])")
    return page.locator(".turn").last.locator(".answer")


@pytest.mark.slow
def test_two_models_respond_side_by_side_with_history(page: Any, toy: Live) -> None:
    page.goto(toy.url)
    page.wait_for_selector("#compare-label:not([hidden])")
    page.fill("#temperature", "0")
    page.fill("#max_tokens", "12")
    page.fill("#system", "Be brief.")
    begin = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}]
    answers = say(page, "2+2?")
    first = {name: expected(toy, name, begin) for name in ("toy", "other")}
    assert answers.locator(".name").all_text_contents() == ["toy", "other"]
    assert answers.locator(".text").all_text_contents() == list(first.values())
    assert "12 tokens" in str(answers.first.locator(".facts").text_content())
    second = say(page, "And 3+3?").locator(".text").all_text_contents()
    for said, name in zip(second, first, strict=True):
        more = [{"role": "assistant", "content": first[name]}, {"role": "user", "content": "And 3+3?"}]
        assert said == expected(toy, name, begin + more)
    page.uncheck("#compare")
    page.select_option("#model", "other")
    assert say(page, "Hi").locator(".name").all_text_contents() == ["other"]
    page.click("#new")
    assert page.locator(".turn").count() == 0
    assert all(url.startswith(toy.url) or url.startswith("data:") for url in page.asked)


@pytest.mark.slow
def test_tokens_are_coloured_and_show_alternatives(page: Any, toy: Live) -> None:
    page.goto(toy.url)
    page.wait_for_selector("#compare-label:not([hidden])")
    page.fill("#max_tokens", "12")
    page.fill("#seed", "1")
    tokens = say(page, "2+2?").first.locator(".token")
    assert tokens.count() > 8
    surprises = [float(each.evaluate("e => e.style.getPropertyValue('--surprise')")) for each in tokens.all()]
    assert 0 <= min(surprises) < max(surprises) <= 1
    colour = "e => getComputedStyle(e).backgroundColor"
    assert len({each.evaluate(colour) for each in tokens.all()}) > 1
    visible = [each for each in tokens.all() if str(each.text_content()).strip()]
    assert any("\ufffd" in str(each.text_content()) for each in visible)  # parts of characters look alike
    for each in visible:
        each.hover()
        assert page.locator("#tip div").count() >= 5
        assert page.locator("#tip div.chosen").count() == 1
    page.uncheck("#colour")
    assert {each.evaluate(colour) for each in tokens.all()} == {"rgba(0, 0, 0, 0)"}
    assert page.locator("#legend").is_hidden()


@pytest.mark.slow
def test_stop_button_cancels_the_request(page: Any, toy_model: Any, tokenizer: Any) -> None:
    models = {name: endless(toy_model(vocab_size=512), tokenizer) for name in ("toy", "other")}
    with live(Served(models, tokenizer, Limits(max_model_len=1_000_000))) as found:
        page.goto(found.url)
        page.wait_for_selector("#compare-label:not([hidden])")
        page.fill("#max_tokens", "900000")
        page.fill("#ask", "Go on")
        page.click("#send")
        # the first token may be part of a character, which shows nothing
        page.wait_for_selector(".answer .token", state="attached")
        found.until(lambda health: health["running"] == 2)
        page.click("#stop")
        page.wait_for_selector("#send:not([disabled])")
        found.until(lambda health: health["running"] == 0)
        assert all("stopped" in facts for facts in page.locator(".facts").all_text_contents())


@pytest.mark.slow
def test_reasoning_is_folded_and_errors_are_shown(page: Any, toy_model: Any, tokenizer: Any) -> None:
    text = "Let me see.</think>Four<b>!</b> é<｜end▁of▁sentence｜>"
    with live(Served({"parrot": parrot(toy_model(vocab_size=512), tokenizer, text)}, tokenizer, key="s")) as bird:
        page.goto(bird.url)
        page.fill("#key", "s")
        page.press("#key", "Tab")
        page.wait_for_selector("#model option", state="attached")
        assert page.locator("#compare-label").is_hidden()
        page.check("#thinking")
        answer = say(page, "2+2?")
        assert answer.locator(".text").text_content() == "Four<b>!</b> é"
        assert answer.locator(".thought").is_hidden()
        answer.locator("summary").click()
        assert answer.locator(".thought").text_content() == "Let me see."
        page.fill("#top_p", "7")
        assert "top_p must be above 0 and at most 1" in str(say(page, "2+2?").locator(".wrong").text_content())
