"""The page in a browser: at the width of a desktop and of a phone, in both colour schemes."""

import shutil
from pathlib import Path

import pytest

from trainers.config import RunConfig
from trainers.experiment import run as train
from trainers.report.evidence import Options
from trainers.report.page import SECTIONS, write_report

sync_api = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
SCRIPT = "<script>document.title='hit'</script>"


@pytest.fixture(scope="module")
def browser():
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(finished, checkpoint, tmp_path_factory):
    """Pages of sentences, and of texts with a hostile label, hostile texts and words too long for a phone."""
    folder = tmp_path_factory.mktemp("browser")
    long = "verylongword" * 20
    for split, count in {"train": 16, "valid": 6, "test": 12}.items():
        rows = ["text,label"]
        for number in range(count):
            label = SCRIPT if number % 2 else "a label of many words that goes on and on and on"
            rows.append(f'"{SCRIPT} il2 {long} {number}","{label}"')
        (folder / f"{split}.csv").write_text("\n".join(rows) + "\n")
    done = train(
        RunConfig(task="text-classification", model=str(checkpoint), data=str(folder), fresh_head=True, epochs=1,
                  output_dir=folder / "run")
    )  # fmt: skip
    options = Options(errors=4)
    return [
        write_report(done.folder, options),
        write_report([finished["lora"], finished["full"]], options, folder / "words"),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_it_is_read_without_overflow_error_or_request(browser, pages, scheme, width):
    for path in pages:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        said, asked = [], []
        page.on("console", lambda message, said=said: said.append(message.text))
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto(Path(path).resolve().as_uri())
        assert said == []
        assert [url for url in asked if not url.startswith(("data:", "file:"))] == []
        assert sum(url.startswith("file:") for url in asked) == 1
        assert page.title().startswith(("run:", "lora:"))  # no script of the data has run
        assert page.locator("main script").count() == 0
        for key in SECTIONS:
            assert page.locator(f"section#{key} h2").is_visible()
            assert page.locator(f"nav a[href='#{key}']").count() == 1
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter(one => !one.complete || !one.naturalWidth || !one.alt).length"
        assert page.evaluate(broken) == 0
        dark = page.evaluate(
            "document.querySelector('figure img').currentSrc === document.querySelector('source').srcset"
        )
        assert dark == (scheme == "dark")
        assert _least_contrast(page) >= 4.5
        context.close()


def _least_contrast(page):
    """The least contrast of a text against what lies behind it (WCAG 2.1, 1.4.3)."""
    return page.evaluate("""() => {
        const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
        const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255)
            .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
        const ground = node => {
            for (; node; node = node.parentElement) {
                const colour = numbers(getComputedStyle(node).backgroundColor);
                if (colour.length < 4 || colour[3] > 0) return colour;
            }
            return [255, 255, 255];
        };
        let least = 21;
        for (const node of document.querySelectorAll('body *')) {
            if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim())) continue;
            const over = numbers(getComputedStyle(node).color), under = ground(node);
            const a = Number(getComputedStyle(node).opacity);
            const seen = over.slice(0, 3).map((v, i) => a * v + (1 - a) * under[i]);
            const [high, low] = [luminance(seen), luminance(under)].sort((x, y) => y - x);
            least = Math.min(least, (high + 0.05) / (low + 0.05));
        }
        return least;
    }""")
