"""The page in a real browser: Chromium, driven by Playwright, against a running service."""

import json
import re
import shutil
from pathlib import Path

import pytest

import trainers.service
from trainers.serve import pipeline

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--disable-component-update", "--disable-sync"]  # fmt: skip
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")

PAGE = Path(trainers.service.__file__).with_name("page.html").read_text()
TEXT = "nfkb binds the il2 promoter 🧬 in junb cells"
WIDTHS = (390, 800, 1600)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, service):
    """The page at a width and in a colour scheme; what it logs, and whom it asks, is checked at the end."""
    opened, complaints, asked = [], [], []

    def open_one(width=1000, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        opened.append(page)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{service.port}/")
        page.wait_for_selector("#model option", state="attached")
        return page

    yield open_one
    for page in opened:
        page.close()
    unexpected = [
        text for text in complaints if not re.search("status of 4|ERR_FAILED", text)
    ]  # those that the page shows
    assert not unexpected
    assert all(re.match(rf"http://127\.0\.0\.1:{service.port}/|data:|blob:", url) for url in asked)


def test_entities_are_marked_where_they_are(open_page, exported):
    page = open_page()
    page.fill("#text", TEXT)
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#table:not([hidden])")
    expected = pipeline(None, exported["ner"] / "model.onnx")(TEXT)
    assert len(expected) > 2
    marks = page.eval_on_selector_all("mark", "marks => marks.map(mark => mark.firstChild.data)")
    assert marks == [entity["word"] for entity in expected]
    notes = [note.strip() for note in page.locator("mark small").all_inner_texts()]
    assert notes == [f"{entity['entity_group']} {100 * entity['score']:.1f}%" for entity in expected]
    # Without the notes, the text is as it was typed.
    page.eval_on_selector_all("mark small", "notes => notes.forEach(note => note.remove())")
    assert page.locator("#marked").text_content() == TEXT
    assert page.locator("#table tbody tr").count() == len(expected)


def test_the_curl_command_is_the_request(open_page, service):
    page = open_page()
    page.fill("#text", "il2's promoter")
    command = page.locator("#curl").inner_text()
    assert command.startswith(f"curl http://127.0.0.1:{service.port}/v1/models/ner:predict ")
    body = re.search(r"-d '(.*)'$", command)[1].replace("'\\''", "'")
    assert json.loads(body) == {"inputs": ["il2's promoter"]}
    page.select_option("#strategy", "max")
    assert '"aggregation_strategy":"max"' in page.locator("#curl").inner_text()


def test_labels_images_and_adapters(open_page, tmp_path, exported, service):
    page = open_page()
    page.select_option("#model", "text")
    page.fill("#text", "the gene binds")
    page.click("#send")
    page.wait_for_selector("#table tbody tr")
    expected = service.predict("text", ["the gene binds"], top_k=None)[0]
    mattered = service.predict("text", ["the gene binds"], words=True)[0]["words"]
    largest = max(abs(word["effect"]) for word in mattered)
    shown = [word["word"] for word in mattered if abs(word["effect"]) >= max(0.2 * largest, 0.001)]
    assert page.eval_on_selector_all("mark", "marks => marks.map(mark => mark.firstChild.data)") == shown
    rows = page.locator("#table tbody tr").all_inner_texts()
    assert [row.split() for row in rows] == [[each["label"], f"{100 * each['score']:.1f}%"] for each in expected]

    page.select_option("#model", "image")
    image = next((Path(exported["image"]).parent).rglob("*.png"), None) or tmp_path / "a.png"
    if not image.exists():
        from PIL import Image

        Image.new("RGB", (20, 16), "white").save(image)
    page.set_input_files("#file", image)
    page.wait_for_selector("#table tbody tr")
    assert page.locator("#table tbody tr").count() == 2
    assert page.locator("#preview").is_visible()
    assert "-F 'images=@" in page.locator("#curl").inner_text()

    page.select_option("#model", "base")
    page.select_option("#adapter", "a")
    page.fill("#text", TEXT)
    with page.expect_request("**/v1/models/base:predict") as sent:
        page.click("#send")
    assert json.loads(sent.value.post_data)["options"] == {"adapter": "a"}


def test_markup_stays_text(open_page):
    page = open_page()
    text = "nfkb <img src=x onerror=document.title='owned'> <b>il2</b>"
    page.fill("#text", text)
    page.click("#send")
    page.wait_for_selector("#marked:not([hidden])")
    page.wait_for_timeout(100)
    assert page.title() == "Try the models"
    assert page.locator("#marked img, #marked b, #table img, #table b").count() == 0


def test_errors_are_shown(open_page):
    page = open_page()
    page.click("#send")
    assert page.locator("#error").inner_text() == "Type a text first."
    page.fill("#text", "a" * 50_001)
    page.click("#send")
    sync_api.expect(page.locator("#error")).to_contain_text("50001 characters")
    page.route("**/*:predict", lambda route: route.abort())
    page.fill("#text", "a")
    page.click("#send")
    sync_api.expect(page.locator("#error")).to_contain_text("does not answer")


def test_it_is_used_with_the_keyboard_alone(open_page):
    page = open_page()
    order = []
    for _ in range(8):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert order == ["model", "strategy", "text", "send", "Example 1", "Example 2", "curl", "copy"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('select, textarea, input')].filter(each => !each.labels.length).map(e => e.id)"
    )
    assert unnamed == []
    assert page.locator("#result").get_attribute("aria-live") == "polite"
    assert page.locator("#error").get_attribute("role") == "alert"


CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map((each) => {
      const value = each / 255;
      return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const colour = getComputedStyle(each).backgroundColor;
      if (!/, 0\\)$|transparent/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = {};
  for (const element of document.querySelectorAll("h1, h2, label, button, mark, small, td, th, .hint, pre, #error")) {
    if (!element.offsetParent) continue;
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const name = element.tagName + (element.className ? "." + element.className : "");
    found[name] = Math.min(found[name] || 99, ratio);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_can_be_read(open_page, tmp_path_factory, width, scheme):
    page = open_page(width, scheme)
    page.fill("#text", TEXT + " and averyveryverylongwordwithoutanyspaceinitthatwouldnotfitonaphone" * 2)
    page.click("#send")
    page.wait_for_selector("#table:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRAST)
    assert "MARK" in contrasts
    assert {name: ratio for name, ratio in contrasts.items() if ratio < 4.5} == {}
    page.screenshot(path=tmp_path_factory.getbasetemp() / f"page_{width}_{scheme}.png", full_page=True)
    page.select_option("#model", "text")  # with the words that mattered
    page.fill("#text", "the gene binds il2 " * 5)
    page.click("#send")
    page.wait_for_selector("#legend:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert {name: ratio for name, ratio in page.evaluate(CONTRAST).items() if ratio < 4.5} == {}


def test_the_file_asks_nobody_and_writes_text_alone():
    assert not re.findall(r"https?://|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", PAGE)
