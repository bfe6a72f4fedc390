"""Plays in the page and takes the pictures of the docs; prints what it measured.

    python scripts/serve_screenshots.py --output_dir docs/images

Starts its own server of maze-world, and Chromium (apt-get install chromium). Writes
`serve.png`, `serve_fork.png` and `serve_phone.png`, and prints one line of JSON: frames
per second at the page, and milliseconds from a key to the first frame that knows it.
"""

import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from absl import app, flags

_ROOT = pathlib.Path(__file__).resolve().parents[1]

_OUTPUT_DIR = flags.DEFINE_string("output_dir", "outputs/screenshots", "Of the PNGs.")
_FPS = flags.DEFINE_integer(
    "fps", 12, "Frames per second; as fast as it can go: 1000.", lower_bound=1
)
_SECONDS = flags.DEFINE_float("seconds", 20, "To measure for.", lower_bound=1)
_PHONE: Any = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 2,
}


@contextlib.contextmanager
def _server() -> Iterator[str]:
    """A server of its own; its address."""
    command = [sys.executable, "-m", "fdjax.serve.cli", "maze-world", "--port=0"]
    options = ["--maze_seed=5", f"--fps={_FPS.value}"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, text=True, cwd=_ROOT
    )
    assert process.stdout is not None
    try:
        found = re.search(r"http\S+", process.stdout.readline())
        if found is None:
            raise RuntimeError("the server did not start")
        yield found.group()
    finally:
        process.terminate()
        process.wait(timeout=20)


def _play(page: Any, address: str, chunks: int = 3) -> None:
    page.goto(address)
    page.wait_for_function(
        "count => Number(document.body.dataset.committed) >= count",
        arg=chunks,
        timeout=120_000,
    )


def _walk(page: Any, keys: str) -> None:
    """Holds keys for a while each: "w3 wa1" are seconds."""
    for part in keys.split():
        held, seconds = part[:-1], int(part[-1])
        for key in held:
            page.keyboard.down(key)
        page.wait_for_timeout(1000 * seconds)
        for key in held:
            page.keyboard.up(key)


def _measure(page: Any) -> dict[str, Any]:
    """Other keys four times a second; what the page's own figures say."""
    page.evaluate("() => { fdjax.figures.latencies.length = 0; }")
    rates = []
    for number in range(round(_SECONDS.value * 2)):
        key = "wad"[number % 3]
        page.keyboard.down(key)
        page.wait_for_timeout(250)
        page.keyboard.up(key)
        page.wait_for_timeout(250)
        rates.append(page.evaluate("() => fdjax.figures.fps()"))
    latencies = sorted(page.evaluate("() => fdjax.figures.latencies"))
    return {
        "frames_per_second": round(sorted(rates[6:])[len(rates[6:]) // 2], 1),
        "input_to_frame_ms": {
            str(part): round(latencies[int(part / 100 * (len(latencies) - 1))])
            for part in (50, 95)
        },
        "inputs": len(latencies),
        "chunk_ms": page.locator("#chunk-ms").inner_text(),
    }


def _take(page: Any, path: pathlib.Path) -> None:
    """A picture of the page, in so few colours that it is small."""
    from PIL import Image

    page.screenshot(path=path)
    with Image.open(path) as image:
        reduced = image.convert("RGB").quantize(200)
    reduced.save(path, optimize=True)


def main(argv: list[str]) -> None:
    """Takes the pictures."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    from playwright import sync_api

    if (chromium := shutil.which("chromium")) is None:
        raise app.UsageError("Chromium is missing: apt-get install chromium")
    folder = pathlib.Path(_OUTPUT_DIR.value)
    folder.mkdir(parents=True, exist_ok=True)
    with _server() as address, sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 860})
        _play(page, address)
        measured = _measure(page)
        page.keyboard.press("n")
        page.wait_for_timeout(1500)
        _walk(page, "w2 a1 d1 w1")
        _take(page, folder / "serve.png")
        page.keyboard.press("f")
        page.locator("#prompt").fill("blue stone maze at day")
        page.locator("#prompt-send").click()
        page.locator("#canvas-b").focus()
        _walk(page, "w1 d1")
        page.keyboard.press("Space")
        page.wait_for_timeout(800)
        _take(page, folder / "serve_fork.png")
        page.close()
        phone = browser.new_page(**_PHONE)
        _play(phone, address, 8)
        _take(phone, folder / "serve_phone.png")
        browser.close()
    print(json.dumps(measured))


if __name__ == "__main__":
    if {"-h", "-help", "--help"} & set(sys.argv[1:]):
        app.usage(writeto_stdout=True, exitcode=0)  # absl's own exits with 1
    app.run(main)
