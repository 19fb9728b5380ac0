"""The playground in a real browser, as a page of voila and in JupyterLab: ``make test-browser``.

Both open, draw, and draw anew when a slider moves, without an error in the console. It needs chromium and chromedriver
(Debian: ``apt-get install chromium chromium-driver``), and is no part of ``make test``. ``$VARPRO_SCREENSHOTS`` names a
folder that keeps a picture of each page.
"""

import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300  # seconds; the first training compiles, and the machine may have other things to do
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1300,900"
)
# The picture as pixels: its address changes with every value, whether the pixels do or not.
_PIXELS = """
const image = document.querySelector("img.widget-image");
if (!image || !image.complete || !image.naturalWidth) return null;
const canvas = document.createElement("canvas");
canvas.width = image.naturalWidth;
canvas.height = image.naturalHeight;
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL();
"""
_KERNEL_IS_IDLE = """
const notebook = window.jupyterapp?.shell.currentWidget;
return notebook?.sessionContext?.isReady && notebook.sessionContext.session?.kernel?.status === "idle";
"""


def program(name: str, package: str) -> str:
    """The path of a program of the system."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed; on Debian: apt-get install {package}", pytrace=False)
    return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = program("chromium", "chromium")
    for flag in (*_FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(program("chromedriver", "chromium-driver")))
    driver.set_page_load_timeout(PATIENCE)
    driver.set_script_timeout(PATIENCE)
    yield driver
    driver.quit()


@contextmanager
def serving(command: list[str], address: str, folder: Path) -> Iterator[str]:
    """A server until the block ends; the address that it says, which matches ``address``."""
    log = folder / "server.log"
    own = {f"JUPYTER_{kind}_DIR": str(folder / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    with log.open("w") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=ROOT, stdout=said, stderr=said, env=os.environ | own
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(address, log.read_text(errors="replace"))):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, f"no address in {PATIENCE} s: {log.read_text(errors='replace')}"
            time.sleep(0.2)
        yield found[0]
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """A port that is free now; a server that finds it taken counts on and says which it took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(browser: Chrome, condition: Callable[[Chrome], Any]) -> Any:
    return WebDriverWait(browser, PATIENCE, poll_frequency=0.2).until(condition)


def other_picture(browser: Chrome, before: str | None) -> str:
    """The picture, as soon as there is one that is not ``before``."""
    return wait(browser, lambda page: (pixels := page.execute_script(_PIXELS)) != before and pixels)


def slider(browser: Chrome, description: str) -> tuple:
    """(handle, readout) of the slider with this label; the readout is None where it has none."""
    for found in browser.find_elements(By.CSS_SELECTOR, ".widget-inline-hbox"):
        labels = found.find_elements(By.CSS_SELECTOR, ".widget-label")
        if labels and labels[0].text == description:
            readouts = found.find_elements(By.CSS_SELECTOR, ".widget-readout")
            return found.find_element(By.CSS_SELECTOR, ".noUi-handle"), (readouts or [None])[0]
    raise AssertionError(f"no slider {description!r}")


def play(browser: Chrome) -> None:
    """Move two sliders; the picture changes with each."""
    first = other_picture(browser, None)
    handle, readout = slider(browser, "neurons M")
    assert readout.text == "128"
    handle.send_keys(Keys.ARROW_RIGHT)
    second = other_picture(browser, first)
    assert readout.text == "256"
    handle, _ = slider(browser, "state")
    handle.send_keys(Keys.ARROW_LEFT)
    assert other_picture(browser, second) != first
    if "VARPRO_SCREENSHOTS" in os.environ:
        folder = Path(os.environ["VARPRO_SCREENSHOTS"])
        folder.mkdir(parents=True, exist_ok=True)
        test = os.environ["PYTEST_CURRENT_TEST"].split("::")[-1].split()[0]
        browser.save_screenshot(str(folder / f"{test}.png"))


def errors(browser: Chrome, address: str) -> str:
    """What the console calls severe, but for files of other hosts (voila's icons), which may be out of reach."""
    said = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return "\n".join(line for line in said if address in line or "Failed to load resource" not in line)


def test_page(browser, tmp_path):
    recipe = subprocess.run(["make", "-n", "playground"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (start,) = (line for line in recipe.splitlines() if "/voila " in line)
    arguments = shlex.split(start)[1:]
    command = ["voila", *arguments, "--no-browser", f"--port={free_port()}"]
    with serving(command, r"http://localhost:\d+/", tmp_path) as address:
        browser.get(address)
        play(browser)
        assert errors(browser, address) == ""


def test_jupyterlab(browser, tmp_path):
    shutil.copy(ROOT / "Playground.ipynb", tmp_path)  # which JupyterLab saves to
    token = secrets.token_hex(16)
    command = ["jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={free_port()}"]
    command += [f"--ServerApp.root_dir={tmp_path}", f"--IdentityProvider.token={token}"]
    command += ["--LabApp.expose_app_in_browser=True"]
    with serving(command, r"http://localhost:\d+/", tmp_path) as address:
        browser.get(f"{address}lab/tree/Playground.ipynb?token={token}")
        wait(browser, lambda page: page.execute_script(_KERNEL_IS_IDLE))  # a cell run before is forgotten
        browser.execute_script('window.jupyterapp.commands.execute("notebook:run-all-cells")')
        play(browser)
        assert errors(browser, address) == ""
