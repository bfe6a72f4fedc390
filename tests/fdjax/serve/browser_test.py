"""The page in a real browser: Debian's Chromium, driven by Playwright."""

import base64
import contextlib
import io
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fdjax_models.methods.maze_world.evaluation.measures import yaw_rates
from fdjax_models.methods.maze_world.simulator import TURN_STEP
from tests import processes

pytestmark = pytest.mark.browser
sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: pip install 'fdjax[test]'"
)
CHROMIUM = shutil.which("chromium")
SETTINGS = ("maze-world", "--maze_seed=3", "--port=0", "--max_sessions=6", "--fps=24")
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


@contextlib.contextmanager
def server():
    """A server's process, as a user starts it; its address."""
    command = [sys.executable, "-m", "fdjax.serve.cli", *SETTINGS]
    with processes.running(command, stdout=subprocess.PIPE, text=True) as process:
        yield re.search(r"http\S+", process.stdout.readline()).group()


@pytest.fixture(scope="module")
def address():
    with server() as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(browser, address, chunks=2, **options):
    """A page that plays, with nothing in its console."""
    said = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    committed(page, chunks)
    yield page
    context.close()
    assert not said


def committed(page, count):
    page.wait_for_function(
        "count => Number(document.body.dataset.committed) >= count", arg=count
    )


def paused(page):
    """Waits until all that was made has been shown, and nothing more comes."""
    page.wait_for_function(
        """() => {
            const { chunk, frame, count } =
                fdjax.stage.canvases[fdjax.state.selected].dataset;
            return document.body.dataset.playing === "false"
                && Number(chunk) === Number(document.body.dataset.committed) - 1
                && Number(frame) === Number(count) - 1;
        }"""
    )


def picture(page, timeline="a"):
    data = page.evaluate(
        "name => Array.from(fdjax.stage.canvases[name].getContext('2d')"
        ".getImageData(0, 0, 160, 96).data)",
        timeline,
    )
    return np.array(data, np.uint8).reshape(96, 160, 4)[..., :3]


def recorded(page, keys, chunks):
    """The frames that are shown while keys are held."""
    page.evaluate(
        """() => {
            window.frames_seen = [];
            const stage = fdjax.stage, draw = stage.draw.bind(stage);
            stage.draw = (frame, bitmap) => {
                draw(frame, bitmap);
                if (frame.input === fdjax.figures.sequence && frame.count > 1)
                    window.frames_seen.push(stage.canvases.a.toDataURL());
            };
            window.stop_seeing = () => { stage.draw = draw; };
        }"""
    )
    for key in keys:
        page.keyboard.down(key)
    page.wait_for_function(
        "count => window.frames_seen.length >= count", arg=4 * chunks
    )
    for key in keys:
        page.keyboard.up(key)
    urls = page.evaluate("() => { window.stop_seeing(); return window.frames_seen; }")
    images = [Image.open(io.BytesIO(base64.b64decode(u.split(",")[1]))) for u in urls]
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def test_keys_turn_the_picture_as_commanded(browser, address):
    with opened(browser, address) as page:
        assert page.title() == "maze-world – fdjax live"
        for key, sign in (("a", 1), ("ArrowRight", -1)):
            video = recorded(page, [key], 4)
            rate = np.median(yaw_rates(video / 127.5 - 1))
            np.testing.assert_allclose(rate, sign * TURN_STEP, rtol=0.4)
        page.keyboard.press("p")
        assert page.locator("#fps").inner_text() != "–"
        assert "ms" in page.locator("#latency").inner_text()


def test_undo_redo_and_the_timeline(browser, address):
    with opened(browser, address, 4) as page:
        page.keyboard.press("Space")
        paused(page)
        before = picture(page)
        page.keyboard.press("z")
        page.keyboard.press("z")
        page.wait_for_function("() => fdjax.state.timelines[0].redo_limit === 2")
        paused(page)
        back = picture(page)
        page.keyboard.press("y")
        page.keyboard.press("y")
        page.wait_for_function("() => fdjax.state.timelines[0].redo_limit === 0")
        paused(page)
        np.testing.assert_array_equal(picture(page), before)
        # The same again by the strip, whose thumbnails are all there.
        count = int(page.evaluate("() => document.body.dataset.committed"))
        assert page.locator("#strip img:not([hidden])").count() == count
        page.locator(f"#strip button[data-chunk='{count - 2}']").click()
        page.wait_for_function("() => fdjax.state.timelines[0].redo_limit === 2")
        paused(page)
        np.testing.assert_array_equal(picture(page), back)


def test_a_fork_and_a_prompt_that_changes_the_colour(browser, address):
    with opened(browser, address, 3) as page:
        page.keyboard.press("f")
        page.wait_for_function("() => fdjax.state.selected === 'b'")
        paused(page)
        first = picture(page, "a")
        np.testing.assert_array_equal(picture(page, "b"), first)
        page.keyboard.press("/")
        page.locator("#prompt").fill("blue stone maze at day")
        page.keyboard.press("Enter")
        page.keyboard.down("w")
        committed(page, int(page.evaluate("() => document.body.dataset.committed")) + 8)
        page.keyboard.up("w")
        page.keyboard.press("Space")
        paused(page)
        red, blue = picture(page, "a"), picture(page, "b")
        np.testing.assert_array_equal(red, first)
        assert red[..., 0].mean() > red[..., 2].mean() + 30
        assert blue[..., 2].mean() > blue[..., 0].mean() + 30
        assert page.locator("#stages.two .stage:visible").count() == 2


def test_a_session_outlives_its_server(browser, address, tmp_path):
    with server() as first, opened(browser, first, 3, accept_downloads=True) as page:
        page.keyboard.press("Space")
        paused(page)
        with page.expect_download() as download:
            page.locator("#save").click()
        path = tmp_path / "walk.session"
        download.value.save_as(path)
        wanted = recorded(page, ["w"], 1)[0]
    with opened(browser, address) as page:
        with page.expect_file_chooser() as chooser:
            page.locator("#load").click()
        chooser.value.set_files(path)
        page.wait_for_function("() => document.body.dataset.playing === 'false'")
        paused(page)
        np.testing.assert_array_equal(recorded(page, ["w"], 1)[0], wanted)


def test_a_phone_has_touch_keys_and_all_of_the_page_in_its_width(browser, address):
    with opened(browser, address, **PHONE) as page:
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 390
        for label in ("forward", "back", "turn left", "turn right"):
            assert page.get_by_label(label, exact=True).is_visible()
        for button in ("Undo", "Fork", "Save", "Record"):
            box = page.locator(f"#{button.lower()}").bounding_box()
            assert min(box["width"], box["height"]) >= 36
        box = page.get_by_label("forward", exact=True).bounding_box()
        page.mouse.move(box["x"] + 9, box["y"] + 9)
        page.mouse.down()
        page.wait_for_function("() => fdjax.figures.latencies.length > 0")
        page.mouse.up()


def test_everything_on_the_page_has_a_name(browser, address):
    with opened(browser, address) as page:
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('button, input, select, canvas')]
                .filter(e => e.offsetParent && !(e.innerText?.trim() || e.ariaLabel
                    || e.labels?.length || e.title))
                .map(e => e.outerHTML.slice(0, 80))"""
        )
        assert not nameless


def test_no_part_of_the_page_comes_from_elsewhere():
    import fdjax.serve

    folder = pathlib.Path(fdjax.serve.__file__).parent / "page"
    for path in folder.iterdir():
        found = re.findall(r"https?://[^\s\"'<)]+", path.read_text("utf-8"))
        allowed = ("http://www.w3.org/2000/svg", "https://github.com/msgpack/msgpack.")
        assert set(found) <= set(allowed), path.name
