"""The page, in a real Chromium, against the real server and the bundled model."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from safelight.runtime.image import read_parameters

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEY = "the-key-of-the-tests"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
PROMPT = "cat face on a blue background"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts `safelight serve` in a process of its own; gives its address."""
    running = []

    def started(*arguments: str) -> str:
        log = tmp_path_factory.mktemp("server") / "log"
        program = "import sys; from safelight.runtime.cli import main; raise SystemExit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", program, "serve", "--port", "0", "--log-file", str(log), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(process)
        line = process.stdout.readline()  # once it listens
        assert " at http://127.0.0.1:" in line, log.read_text()
        return line.split(" at ")[1].split(";")[0].strip()

    yield started
    for process in running:
        process.terminate()
    for process in running:
        assert process.wait(30) == 0
        process.stdout.close()


@pytest.fixture(scope="module")
def server(start_server: Callable[..., str]) -> str:
    return start_server()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page in a profile of its own; at the end nothing that the browser complains of is left unseen."""
    complaints: list[str] = []
    contexts = []

    def opened(address: str, *, script: str = "", ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**({"viewport": DESKTOP} | options))
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if _is_complaint(message) else None)
        if script:
            page.add_init_script(script)
        page.goto(address)
        if ready:
            page.wait_for_selector("#generate:enabled")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def _is_complaint(message: Any) -> bool:
    # of every answer that is an error the browser writes, and of markup that a test tries to make: they ask for it
    wanted = message.text.startswith(("Failed to load resource", "This document requires 'TrustedHTML'"))
    return message.type in ("error", "warning") and not wanted


def _until(page: Any, selector: str, pattern: str) -> None:
    """Waits for a text. Not by `wait_for_function`, which the page's policy forbids."""
    page.locator(selector, has_text=re.compile(pattern)).wait_for(state="attached")


def _make(page: Any, **fields: Any) -> None:
    """Fills the form in, generates, and waits for what comes of it."""
    for name, value in fields.items():
        page.fill(f"#{name}", str(value))
    page.click("#generate")
    page.wait_for_selector("#generate:enabled")
    assert page.inner_text("#announcer").startswith("The picture is there"), page.inner_text("#error")


def _download(page: Any) -> bytes:
    with page.expect_download() as download:
        page.click("#download")
    return Path(download.value.path()).read_bytes()


def _ask(address: str, body: bytes, content_type: str) -> dict[str, Any]:
    request = urllib.request.Request(address, body, {"content-type": content_type})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


def _generated(server: str, **fields: Any) -> bytes:
    """The picture that the API gives."""
    answer = _ask(f"{server}/v1/images/generations", json.dumps(fields).encode(), "application/json")
    return base64.b64decode(answer["data"][0]["b64_json"])


def _edited(server: str, image: bytes, mask: bytes | None = None, **fields: Any) -> bytes:
    files = {"image": image} if mask is None else {"image": image, "mask": mask}
    parts = [(f'"{name}"', str(value).encode()) for name, value in fields.items()]
    parts += [(f'"{name}"; filename="a.png"', content) for name, content in files.items()]
    heads = [f"--x\r\ncontent-disposition: form-data; name={name}\r\n\r\n".encode() for name, _ in parts]
    body = b"".join(head + content + b"\r\n" for head, (_, content) in zip(heads, parts, strict=True)) + b"--x--\r\n"
    answer = _ask(f"{server}/v1/images/edits", body, "multipart/form-data; boundary=x")
    return base64.b64decode(answer["data"][0]["b64_json"])


#: keeps the form that the page sends last; what the driver tells of requests has no files
KEEP_FORM = """
    const ask = window.fetch;
    window.fetch = (address, options) => {
        if (options?.body instanceof FormData) window.form = options.body;
        return ask(address, options);
    };
"""


def _sent(page: Any, name: str) -> bytes | None:
    """A file of the form that was sent; None where it has none of that name."""
    content = page.evaluate(
        """async (name) => {
            const file = form.get(name);
            return file && btoa(String.fromCharCode(...new Uint8Array(await file.arrayBuffer())));
        }""",
        name,
    )
    return None if content is None else base64.b64decode(content)


def _pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=np.int16)


def _strip(page: Any) -> int:
    return int(page.locator("#strip li").count())


def test_a_picture_comes_with_steps_and_previews_and_is_the_one_of_the_api(
    server: str, open_page: Any, tmp_path: Path
) -> None:
    page = open_page(server)
    page.evaluate("""() => {
        window.seen = {steps: new Set(), previews: new Set()};
        const stage = document.querySelector("#stage");
        const everything = {subtree: true, childList: true, attributes: true, characterData: true};
        new MutationObserver(() => {
            seen.steps.add(document.querySelector("#step").textContent);
            if (stage.matches(".working.preview")) seen.previews.add(document.querySelector("#picture").src);
        }).observe(stage, everything);
    }""")
    _make(page, prompt=PROMPT, seed=7, num_inference_steps=12, guidance_scale=5)
    steps, previews = page.evaluate("[[...seen.steps], seen.previews.size]")
    assert "step 6 of 12" in steps
    assert previews == 3
    made = _download(page)
    assert made == _generated(server, prompt=PROMPT, seed=7, num_inference_steps=12, guidance_scale=5)
    (tmp_path / "made.png").write_bytes(made)
    parameters = read_parameters(tmp_path / "made.png")
    assert (parameters["prompt"], parameters["seed"], parameters["num_inference_steps"]) == (PROMPT, 7, 12)
    assert page.get_attribute("#download", "download") == "cat-face-on-a-blue-background-7.png"
    assert "seed 7 · 12 steps · guidance 5" in page.inner_text("#caption-facts")
    assert page.get_attribute("#picture", "alt") == PROMPT
    assert page.evaluate("document.querySelector('#picture').naturalWidth") == Image.open(io.BytesIO(made)).width


def test_every_seed_of_an_empty_field_is_another(server: str, open_page: Any) -> None:
    page = open_page(server)
    _make(page, prompt=PROMPT, num_inference_steps=2)
    first = _download(page)
    _make(page)
    assert _download(page) != first
    page.click("#seed-last")
    _make(page)
    assert _strip(page) == 3
    seeds = [part for part in page.inner_text("#caption-facts").split(" · ") if part.startswith("seed")]
    assert seeds == [f"seed {page.input_value('#seed')}"]


def test_cancel_ends_it_and_the_next_is_made(server: str, open_page: Any) -> None:
    page = open_page(server)
    page.fill("#prompt", PROMPT)
    page.fill("#num_inference_steps", "250")
    page.focus("#generate")
    with page.expect_request("**/cancel") as asked:
        page.keyboard.press("Control+Enter")
        _until(page, "#step", "^step")
        assert page.evaluate("document.activeElement.id") == "cancel"
        page.keyboard.press("Escape")
    assert asked.value.response().json()["cancelled"] is True
    _until(page, "#announcer", "^Cancelled")
    page.wait_for_selector("#generate:enabled")
    assert page.is_hidden("#error")
    assert page.is_hidden("#cancel")
    assert _strip(page) == 0
    assert page.get_attribute("#stage", "data-view") == "empty"
    _make(page, num_inference_steps=2)
    assert _strip(page) == 1


def test_what_the_server_refuses_is_told_at_its_field(server: str, open_page: Any) -> None:
    page = open_page(server)
    page.fill("#num_inference_steps", "9999")
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == "num_inference_steps must lie between 1 and 250"
    assert page.evaluate("document.activeElement.id") == "num_inference_steps"
    assert page.get_attribute("#num_inference_steps", "aria-invalid") == "true"
    assert page.get_attribute("#num_inference_steps", "aria-describedby") == "error"
    page.fill("#num_inference_steps", "2")
    assert page.is_hidden("#error")
    assert page.get_attribute("#num_inference_steps", "aria-invalid") is None
    page.fill("#scheduler", "EulerDiscretScheduler")
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    assert "did you mean EulerDiscreteScheduler" in page.inner_text("#error")
    page.fill("#scheduler", "")
    page.fill("#seed", "seven")
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == "seed must be an integer"
    page.fill("#seed", "9007199254740993")  # JavaScript would send another
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    assert "9007199254740991" in page.inner_text("#error")


def test_only_sizes_of_the_model_can_be_had(server: str, open_page: Any) -> None:
    page = open_page(server)
    card = json.load(urllib.request.urlopen(f"{server}/v1/models", timeout=10))["data"][0]
    side = lambda name: int(page.input_value(f"#{name}"))  # noqa: E731
    assert (side("width"), side("height")) == (card["width"], card["height"])
    page.fill("#width", str(card["width"] + card["factor"] + 1))
    page.press("#width", "Tab")
    assert side("width") == card["width"] + card["factor"]
    page.fill("#height", "99999")
    page.press("#height", "Tab")
    assert side("height") <= card["height_range"][1]
    assert side("width") * side("height") <= card["most_pixels"]
    before = side("width"), side("height")
    page.click("#swap")
    assert (side("height"), side("width")) == before
    page.click("#shapes button:has-text('2:3')")
    assert side("width") < side("height")
    shape = side("width"), side("height")
    _make(page, prompt=PROMPT, num_inference_steps=2)
    assert Image.open(io.BytesIO(_download(page))).size == shape


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A picture of 64x64: a gradient."""
    rows, columns = np.mgrid[0:64, 0:64] * 4
    pixels = np.stack([rows, columns, np.full((64, 64), 128)], axis=2).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_picture_is_made_from_a_picture(server: str, open_page: Any, photo: Path) -> None:
    page = open_page(server)
    page.set_input_files("#file", photo)
    page.wait_for_selector("#stage[data-view='source']")
    assert page.inner_text("#source-name") == "photo.png"
    page.fill("#strength", "0.4")
    _make(page, prompt=PROMPT, seed=3, num_inference_steps=10)
    made = _download(page)
    fields = {"prompt": PROMPT, "seed": 3, "num_inference_steps": 10, "strength": 0.4}
    assert made == _edited(server, photo.read_bytes(), **fields)
    assert made != _generated(server, prompt=PROMPT, seed=3, num_inference_steps=10)
    page.click("#source-remove")
    assert page.is_visible("#drop")
    assert page.get_attribute("#stage", "data-view") == "picture"


def test_a_large_photo_is_cut_to_a_size_of_the_model(server: str, open_page: Any, tmp_path: Path) -> None:
    Image.new("RGB", (900, 600), "teal").save(tmp_path / "large.jpg")
    page = open_page(server, script=KEEP_FORM)
    page.set_input_files("#file", tmp_path / "large.jpg")
    page.wait_for_selector("#stage[data-view='source']")
    width, height = (int(page.input_value(f"#{side}")) for side in ("width", "height"))
    assert width > height
    _make(page, prompt=PROMPT, num_inference_steps=4)
    assert Image.open(io.BytesIO(_sent(page, "image") or b"")).size == (width, height)
    assert Image.open(io.BytesIO(_download(page))).size == (width, height)


def test_a_file_that_is_no_picture_is_told(server: str, open_page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("no picture")
    page = open_page(server)
    page.set_input_files("#file", tmp_path / "notes.png")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == "notes.png is no picture that this browser can read"


def test_a_dropped_picture_is_taken(server: str, open_page: Any, photo: Path) -> None:
    page = open_page(server)
    page.evaluate(
        """content => {
            const bytes = Uint8Array.from(atob(content), (character) => character.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], "dropped.png", {type: "image/png"}));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));
        }""",
        base64.b64encode(photo.read_bytes()).decode(),
    )
    page.wait_for_selector("#stage[data-view='source']")
    assert page.inner_text("#source-name") == "dropped.png"


def _paint(page: Any, *places: tuple[float, float]) -> None:
    """Draws a line through places, as parts of the picture's width and height."""
    box = page.locator("#mask").bounding_box()
    points = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in places]
    page.mouse.move(*points[0])
    page.mouse.down()
    for point in points[1:]:
        page.mouse.move(*point, steps=8)
    page.mouse.up()


def test_what_is_painted_is_made_anew_and_nothing_else(server: str, open_page: Any, tmp_path: Path) -> None:
    page = open_page(server, script=KEEP_FORM)
    apple = {"prompt": "red apple on a white background", "seed": 5, "num_inference_steps": 20}
    before = _generated(server, **apple)
    (tmp_path / "apple.png").write_bytes(before)
    page.set_input_files("#file", tmp_path / "apple.png")
    page.wait_for_selector("#stage[data-view='source']")
    page.click("#paint")
    page.fill("#brush", "25")
    _paint(page, (0.75, 0.75))  # undone
    _paint(page, (0.25, 0.25), (0.25, 0.75))
    _paint(page, (0.9, 0.1))
    page.click("#undo")
    page.fill("#strength", "1")
    _make(page, prompt=PROMPT, seed=1, num_inference_steps=12)
    sent, made = _sent(page, "mask") or b"", _download(page)
    assert made == _edited(server, before, sent, prompt=PROMPT, seed=1, num_inference_steps=12, strength=1)
    mask = Image.open(io.BytesIO(sent))
    assert (mask.mode, mask.size) == ("L", (64, 64))
    white = np.asarray(mask) == 255
    assert set(np.unique(mask)) == {0, 255}
    assert white[16:48, 9:23].all()  # the line: 16 wide, from (16, 16) to (16, 48)
    assert white[44:52, 44:52].all()  # the dot
    assert not white[:, 26:38].any()
    assert not white[:12, 50:].any()  # the stroke that was undone
    assert 16 * 32 + 2 * np.pi * 8**2 == pytest.approx(white.sum(), rel=0.04)
    changed = np.abs(_pixels(made) - _pixels(before)).mean(axis=2)
    assert changed[white].mean() > 5
    assert not changed[~white].any()
    page.click("#view-source")
    page.click("#clear")
    _make(page)
    assert _sent(page, "mask") is None


def test_history_survives_a_reload_and_makes_the_same_again(server: str, open_page: Any, photo: Path) -> None:
    page = open_page(server)
    page.set_input_files("#file", photo)
    page.wait_for_selector("#stage[data-view='source']")
    page.click("#paint")
    _paint(page, (0.2, 0.2), (0.8, 0.8))
    fields = {"negative_prompt": "dark", "scheduler": "DDIMScheduler", "strength": 0.85}
    _make(page, prompt=PROMPT, num_inference_steps=5, guidance_scale=3.5, **fields)
    made = _download(page)
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert _strip(page) == 1
    page.click("#strip button")
    page.wait_for_selector("#stage[data-view='picture']")
    assert _download(page) == made
    page.click("#again")
    page.wait_for_selector("#prompt:focus")
    shown = {
        name: page.input_value(f"#{name}") for name in (*fields, "prompt", "num_inference_steps", "guidance_scale")
    }
    expected = fields | {"prompt": PROMPT, "num_inference_steps": 5, "guidance_scale": 3.5}
    assert shown == {name: str(value) for name, value in expected.items()}
    _make(page)
    assert _download(page) == made
    page.click("#forget")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#history-clear")
    page.wait_for_selector("#history-clear", state="hidden")
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert _strip(page) == 0


def test_a_browser_that_keeps_nothing_shows_what_is_made_now(server: str, open_page: Any) -> None:
    script = "Object.defineProperty(window, 'indexedDB', {get() { throw new DOMException('no', 'SecurityError'); }});"
    page = open_page(server, script=script)
    _make(page, prompt=PROMPT, num_inference_steps=2)
    first = _download(page)
    _make(page)
    assert _strip(page) == 2
    page.click("#strip li:last-child button")
    page.wait_for_selector("#strip li:last-child [aria-current='true']")
    assert _download(page) == first
    assert "not all are kept" in page.inner_text("#history-note")


def test_a_full_browser_lets_the_oldest_go(server: str, open_page: Any) -> None:
    page = open_page(
        server,
        script="""
        window.room = 99;  // that many pictures fit
        const put = IDBObjectStore.prototype.put;
        IDBObjectStore.prototype.put = function (...given) {
            const request = put.apply(this, given);
            if (this.name === "files") {
                const count = this.count();
                count.onsuccess = () => { if (count.result > window.room) full(this.transaction); };
            }
            return request;
        };
        function full(transaction) {
            Object.defineProperty(transaction, "error", {value: new DOMException("full", "QuotaExceededError")});
            transaction.abort();
        }
    """,
    )
    for seed in (1, 2, 3):
        _make(page, prompt=PROMPT, num_inference_steps=1, seed=seed)
    page.evaluate("window.room = 2")
    _make(page, seed=4)
    assert _strip(page) == 2  # the oldest two have made room
    assert "kept in this browser" in page.inner_text("#history-note")
    page.evaluate("window.room = 0")
    _make(page, seed=5)
    assert _strip(page) == 1
    assert "not all are kept" in page.inner_text("#history-note")
    page.reload()
    page.wait_for_selector("#generate:enabled")
    assert _strip(page) == 0


def test_a_prompt_of_markup_is_text(server: str, open_page: Any) -> None:
    prompt = '<img src=x onerror="window.hit = 1"><b>bold</b><script>window.hit = 1</script>'
    page = open_page(server)
    _make(page, prompt=prompt, num_inference_steps=1)
    page.reload()
    page.wait_for_selector("#generate:enabled")
    page.click("#strip button")
    page.wait_for_selector("#caption:visible")
    assert page.inner_text("#caption-prompt") == prompt
    assert page.locator("#caption b, #strip b, main script").count() == 0
    assert page.evaluate("window.hit") is None
    # and were it otherwise, the browser would not have it
    assert (
        page.evaluate("(() => { try { document.body.innerHTML = '<b>x</b>'; } catch (e) { return e.name; } })()")
        == "TypeError"
    )


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_phone_has_nothing_beside_the_screen(server: str, open_page: Any, photo: Path, scheme: str) -> None:
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
    page = open_page(server, color_scheme=scheme, **options)
    _make(page, prompt="a_very_long_word" * 30, num_inference_steps=1)
    page.click("#edit")
    page.wait_for_selector("#stage[data-view='source']")
    page.tap("#paint")
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert (
        page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, .button")]
        .filter((each) => each.checkVisibility() && !each.closest("#strip"))
        .map((each) => [each.id, each.getBoundingClientRect()])
        .filter(([, box]) => box.left < 0 || box.right > innerWidth || box.height < 28)
        .map(([id]) => id)""")
        == []
    )
    box = page.locator("#mask").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.is_enabled("#undo")
    assert page.locator("#generate").bounding_box()["y"] < PHONE["height"]  # without scrolling


def test_every_control_has_a_name_and_text_can_be_read(server: str, open_page: Any, photo: Path) -> None:
    for scheme in ("dark", "light"):
        page = open_page(server, color_scheme=scheme)
        page.set_input_files("#file", photo)
        page.wait_for_selector("#stage[data-view='source']")
        unnamed = page.evaluate("""() => [...document.querySelectorAll("input, textarea, button, a, progress")]
            .filter((each) => !(each.labels?.length || each.textContent.trim() || each.getAttribute("aria-label")))
            .map((each) => each.outerHTML)""")
        assert unnamed == []
        colours = page.evaluate("""() => {
            const style = getComputedStyle(document.documentElement);
            const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
            const rgb = (name) => {
                context.fillStyle = style.getPropertyValue(name);
                context.fillRect(0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
            };
            const names = ["room", "table", "panel", "field", "edge", "text", "faint", "lamp", "on-lamp", "wrong"];
            return Object.fromEntries(names.map((name) => [name, rgb("--" + name)]));
        }""")
        for behind in ("room", "table", "panel", "field"):
            for text in ("text", "faint", "wrong"):
                assert _contrast(colours[text], colours[behind]) >= 4.5, (scheme, text, behind)
        for behind in ("panel", "field", "room"):
            assert _contrast(colours["edge"], colours[behind]) >= 3, (scheme, behind)
        assert _contrast(colours["on-lamp"], colours["lamp"]) >= 4.5


def _contrast(one: list[int], other: list[int]) -> float:
    """WCAG 2's, from 1 to 21."""

    def luminance(colour: list[int]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour)]
        return float(np.dot([0.2126, 0.7152, 0.0722], linear))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_behind_a_key_the_browser_asks_for_it(start_server: Callable[..., str], open_page: Any) -> None:
    address = start_server("--api-key", KEY)
    with pytest.raises(urllib.error.HTTPError, match="401") as refused:
        urllib.request.urlopen(address, timeout=10)
    refused.value.close()
    page = open_page(address, http_credentials={"username": "me", "password": KEY})
    _make(page, prompt=PROMPT, num_inference_steps=2)
    assert _strip(page) == 1


def test_a_server_that_is_gone_is_told(server: str, open_page: Any) -> None:
    page = open_page(server)
    page.route("**/v1/**", lambda route: route.abort())
    page.click("#generate")
    page.wait_for_selector("#error:visible")
    assert page.inner_text("#error") == "The server does not answer"
    assert page.is_enabled("#generate")
