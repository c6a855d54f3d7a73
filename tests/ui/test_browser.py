"""The page in headless Chromium: every tab, with pictures of what was seen in ``--basetemp``.

    pytest -m browser tests/ui/test_browser.py --basetemp=FOLDER

needs ``pip install scoresde[ui] selenium``, chromium and chromedriver.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

import scoresde as ss
from scoresde.data import digits
from scoresde.progress import silent
from scoresde.runs.recipe import recipe
from tests.parity.stable_diffusion_folders import make

pytestmark = pytest.mark.browser
if not shutil.which("chromedriver"):
    pytest.skip("no chromedriver here", allow_module_level=True)
pytest.importorskip("gradio")
webdriver = pytest.importorskip("selenium.webdriver")
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--window-size=1500,1400",
]
PATIENCE = 90.0


class Page:
    """A browser on the page, with what a user does in it."""

    def __init__(self, address: str, home: Path, seen: Path) -> None:
        options = webdriver.ChromeOptions()
        for flag in (*FLAGS, f"--user-data-dir={home}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        service = Service(shutil.which("chromedriver"))
        self.driver = webdriver.Chrome(options=options, service=service)
        self.address, self.seen = address, seen
        self.open()

    def open(self) -> None:
        self.driver.get(self.address)
        self.until(lambda: self.find("#sample-go").is_displayed())
        self.until(lambda: self.value("sample-steps"))  # filled from the model
        self.errors()  # of what the page before had asked and did not wait for

    def find(self, css: str):
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def until(self, holds, patience: float = PATIENCE):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            try:
                if found := holds():
                    return found
            except Exception as error:
                if type(error).__module__.split(".")[0] != "selenium":
                    raise
            time.sleep(0.1)
        self.shot(f"late-{time.monotonic():.0f}")
        raise AssertionError("it does not come")

    def tab(self, name: str) -> None:
        next(e for e in self.all("button[role=tab]") if e.text == name).click()
        time.sleep(0.5)

    def value(self, name: str) -> str:
        return self.find(f"#{name} input, #{name} textarea").get_attribute("value")

    def write(self, name: str, text: str) -> None:
        field = self.find(f"#{name} input:not([type=range]), #{name} textarea")
        self.driver.execute_script("arguments[0].focus()", field)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text or Keys.DELETE)
        time.sleep(0.3)
        if field.get_attribute("role") == "listbox":
            field.send_keys(Keys.ENTER)
        self.driver.execute_script("arguments[0].blur()", field)
        time.sleep(0.7)

    def click(self, name: str) -> None:
        button = self.find(f"#{name}")
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        self.driver.execute_script("arguments[0].click()", button)

    def upload(self, name: str, path: Path) -> None:
        if clear := self.all(f"#{name} button[aria-label=Clear]"):
            clear[0].click()
            time.sleep(0.5)
        self.until(lambda: self.all(f"#{name} input[type=file]"))[0].send_keys(str(path))

    def status(self, name: str, pattern: str) -> str:
        """Wait for a line that matches, and return it."""
        text = self.until(lambda: re.search(pattern, self.find(f"#{name}-status").text))
        return text.string

    def shot(self, name: str) -> None:
        self.driver.save_screenshot(str(self.seen / f"{name}.png"))

    def contacted(self) -> set[str]:
        """The hosts that the page has asked since the last call."""
        events = (json.loads(e["message"])["message"] for e in self.driver.get_log("performance"))
        urls = [
            event["params"]["request"]["url"]
            for event in events
            if event["method"] == "Network.requestWillBeSent"
        ]
        assert urls
        return {urlparse(url).hostname for url in urls if url.startswith(("http", "ws"))}

    def errors(self) -> list[str]:
        return [e["message"] for e in self.driver.get_log("browser") if e["level"] == "SEVERE"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """A run of digits and one of points, of seconds, and a configuration."""
    root = tmp_path_factory.mktemp("folders")
    small = {"network": {"width": 16, "multipliers": [1], "blocks": 1, "attention": []}}
    ss.train(
        {"conditional": True, **small},
        out=root / "runs" / "digits",
        steps=60,
        batch=64,
        lr=5e-3,
        warmup=5,
        ema=0.9,
        progress=silent,
    )
    points = {"data": "moons", "network": {"kind": "mlp", "width": 32}}
    ss.train(points, out=root / "runs" / "moons", steps=200, ema=0.9, progress=silent)
    with suppress(ImportError):  # without diffusers, where the test of it is skipped
        make("sd1", root / "runs" / "sd1", root)
    keys = "data: moons\nnetwork: {kind: mlp, width: 16}\ntrain: {steps: 1000000, log_every: 20, "
    (root / "configs").mkdir()
    (root / "configs" / "long.yaml").write_text(
        f"{keys}sample_every: 200, validate_every: 200}}\n"
    )
    return root


@pytest.fixture(scope="module")
def server(folders):
    """The address of ``scoresde ui`` on these folders, and its process."""
    words = [sys.executable, "-m", "scoresde", "ui", "runs", "configs", "--port", "0"]
    here = str(Path(ss.__file__).parent.parent)
    path = os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    with subprocess.Popen(
        [*words, "--device", "cpu"], cwd=folders, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        try:
            yield re.search(r"http://[\d.:]+", process.stdout.readline())[0], process
            assert process.poll() is None  # it went on through all of it
        finally:
            process.send_signal(signal.SIGINT)
            assert not process.communicate(timeout=60)[0].strip()


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("seen")


@pytest.fixture(scope="module")
def browser(server, seen, tmp_path_factory):
    page = Page(server[0], tmp_path_factory.mktemp("home"), seen)
    yield page
    assert page.contacted() == {"127.0.0.1"}
    page.driver.quit()


@pytest.fixture
def page(browser):
    browser.open()
    yield browser
    assert not [line for line in browser.errors() if "favicon" not in line]


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:
        return answer.read()


def drawn(page: Page, n: int) -> list[bytes]:
    """The pictures of the gallery, as a user saves them."""
    images = page.until(lambda: (x := page.all("#sample-gallery img")) and len(x) >= n and x)
    return [fetched(e.get_attribute("src")) for e in images[:n]]


def test_samples_are_drawn_with_previews_and_a_dropped_picture_restores_the_form(page, tmp_path):
    page.write("sample-model", "runs/digits")
    page.write("sample-seeds", "5-7")
    page.write("sample-label", "3")
    page.write("sample-sampler", "dpmpp_2m")
    page.write("sample-steps", "12")
    page.click("sample-go")
    page.status("sample", r"done in .*12 network calls|done in .*13 network calls")
    page.shot("sample-drawn")
    files = drawn(page, 3)
    path = tmp_path / "dropped.png"
    path.write_bytes(files[1])
    found = recipe(path)
    assert (found["seed"], found["class"], found["steps"]) == (6, "3", 12)
    page.open()
    assert page.value("sample-seeds") == "0-3"
    page.upload("sample-dropped", path)
    page.status("sample", "the form is that of the picture")
    page.shot("sample-restored")
    shown = {name: page.value(f"sample-{name}") for name in ("model", "seeds", "label", "sampler")}
    assert shown == {"model": "runs/digits", "seeds": "6", "label": "3", "sampler": "dpmpp_2m"}
    assert page.value("sample-steps") == "12"
    page.click("sample-go")
    page.status("sample", "done in")
    again = np.asarray(Image.open(io.BytesIO(drawn(page, 1)[0])))
    assert np.array_equal(again, np.asarray(Image.open(path)))


def test_a_long_drawing_shows_previews_and_a_stop_keeps_what_there_is(page):
    page.write("sample-model", "runs/digits")
    page.write("sample-seeds", "0-63")
    page.write("sample-steps", "10000")
    page.write("sample-sampler", "heun")
    page.click("sample-go")
    page.until(lambda: page.find("#sample-preview img").get_attribute("src").startswith("data:"))
    page.status("sample", r"network call \d+ of 20001, \d+:\d\d left")
    page.shot("sample-preview")
    page.click("sample-stop")
    assert "unfinished" in page.status("sample", "stopped in")
    assert len(drawn(page, 64)) == 64
    page.shot("sample-stopped")


def painted(page: Page, path: Path) -> None:
    """A picture on the canvas, with a stroke from its upper left to the lower right."""
    page.upload("edit-picture", path)
    canvas = page.until(lambda: page.find("#edit-canvas canvas"))
    time.sleep(2)
    page.click("edit-go")
    page.status("edit", "paint what is to be painted anew|nothing to paint")
    page.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    hand = ActionChains(page.driver, duration=20)
    hand.move_to_element_with_offset(canvas, -60, -60).click_and_hold()
    for k in range(13):
        hand.move_to_element_with_offset(canvas, 10 * k - 60, 10 * k - 60)
    hand.release().perform()
    time.sleep(1)


def test_a_painted_mask_is_filled(page, folders, tmp_path):
    dataset = digits()
    picture = (dataset.test.x[0, 0].numpy() / 16 * 255).round().astype(np.uint8)
    path = tmp_path / "digit.png"
    Image.fromarray(picture).save(path)
    page.tab("Edit")
    page.write("edit-model", "runs/digits")
    painted(page, path)
    page.click("edit-go")
    page.status("edit", "done in .*network calls")
    images = page.until(lambda: page.all("#edit-gallery img"))
    page.shot("edit-inpainted")
    content = fetched(images[0].get_attribute("src"))
    changed = np.asarray(Image.open(io.BytesIO(content))) != picture
    assert 0 < changed.sum() < 40
    assert not changed[:2, -3:].any()  # the corners off the stroke are kept
    assert not changed[-3:, :2].any()


def test_a_grid_of_two_settings_is_drawn_with_calls_and_errors(page):
    page.tab("Compare")
    page.write("compare-model", "runs/digits")
    page.write("compare-columns", "5,10")
    page.write("compare-rows", "ddim,heun,ancestral")
    page.click("compare-go")
    page.status("compare", "done in")
    text = page.until(lambda: "heun" in (t := page.find("#compare-table").text) and t)
    assert "e-0" in text
    page.until(lambda: page.find("#compare-picture img"))
    page.shot("compare")


def test_a_process_a_trajectory_a_score_and_a_flow_are_inspected(page, tmp_path):
    page.tab("Inspect")
    page.write("inspect-model", "runs/digits")
    page.click("inspect-process")
    page.status("inspect", "done in")
    page.shot("inspect-process")
    page.click("inspect-path")
    page.status("inspect", "done in .*network calls")
    page.shot("inspect-trajectory")
    path = tmp_path / "digit.png"
    shades = (digits().test.x[0, 0].numpy() / 16 * 255).round().astype(np.uint8)
    Image.fromarray(shades).save(path)
    page.upload("inspect-picture", path)
    time.sleep(1)
    page.click("inspect-score")
    assert "of 32 test examples" in page.status("inspect", r"\d\.\d{4} bits per dimension")
    page.shot("inspect-score")
    page.write("inspect-model", "runs/moons")
    page.click("inspect-field")
    page.status("inspect", r"\Adone in [^b]*\Z")
    page.shot("inspect-field")


def test_a_folder_of_stable_diffusion_is_on_every_page(page, tmp_path):
    pytest.importorskip("diffusers")
    page.write("sample-model", "runs/sd1")
    page.until(lambda: page.find("#sample-prompt").is_displayed())
    page.write("sample-prompt", "a red cat")
    page.write("sample-guidance", "3")
    page.write("sample-steps", "3")
    page.click("sample-go")
    page.status("sample", "done in .*network calls")
    path = tmp_path / "drawn.png"
    path.write_bytes(drawn(page, 4)[2])
    page.shot("folder-sample")
    page.open()
    page.upload("sample-dropped", path)
    page.status("sample", "the form is that of the picture")
    shown = [page.value(f"sample-{name}") for name in ("model", "seeds", "prompt", "guidance")]
    assert shown == ["runs/sd1", "2", "a red cat", "3"]
    page.tab("Edit")
    page.write("edit-model", "runs/sd1")
    page.write("edit-seeds", "0-1")
    next(e for e in page.all("button.label-wrap") if e.is_displayed()).click()  # more settings
    page.until(lambda: page.find("#edit-nfe").is_displayed())
    page.write("edit-nfe", "10")
    painted(page, path)
    page.click("edit-go")
    page.status("edit", "done in .*10 network calls")
    page.shot("folder-edit")
    page.tab("Compare")
    page.write("compare-model", "runs/sd1")
    page.write("compare-columns", "2,4")
    page.write("compare-rows", "ddim")
    page.driver.execute_script("arguments[0].click()", page.find("#compare-reference input"))
    page.click("compare-go")
    page.status("compare", "done in")
    page.shot("folder-compare")
    page.tab("Inspect")
    page.write("inspect-model", "runs/sd1")
    page.click("inspect-path")
    page.status("inspect", "done in .*network calls")
    page.upload("inspect-picture", path)
    page.until(lambda: path.stem in page.find("#inspect-picture").text)
    page.click("inspect-score")
    assert "of the latent" in page.status("inspect", "bits per dimension")
    page.shot("folder-inspect")


def test_what_was_said_to_another_model_is_forgotten(page):
    page.write("sample-model", "runs/digits")
    page.until(lambda: page.find("#sample-label").is_displayed())
    page.write("sample-label", "3")
    page.write("sample-model", "runs/moons")  # it takes no class, and has no field for one
    page.until(
        lambda: not page.all("#sample-label") or not page.find("#sample-label").is_displayed()
    )
    page.click("sample-go")
    page.status("sample", "done in .*network calls")
    page.until(lambda: page.find("#sample-preview img"))
    page.shot("sample-points")
    page.tab("Edit")
    page.write("edit-model", "runs/moons")
    page.click("edit-go")
    page.status("edit", "no pictures; choose another")


def test_a_training_is_started_watched_stopped_and_resumed(page, folders):
    page.tab("Train")
    page.write("train-out", "runs/new")
    page.write("train-config", "configs/long.yaml")
    page.click("train-go")
    page.status("train", r"running, step \d{2,}")
    page.until(lambda: list((folders / "runs" / "new" / "samples").glob("*.png")))
    page.until(lambda: page.find("#train-samples img") and page.find("#train-loss img"))
    time.sleep(1)
    page.shot("train-running")
    page.click("train-go")
    page.until(lambda: "holds a run; resume it" in page.find(".toast-body").text)
    page.click("train-stop")
    page.status("train", r"stopped, step \d+")
    page.click("train-resume")
    page.status("train", r"running, step \d+")
    page.click("train-stop")
    page.status("train", r"stopped, step \d+")
    page.shot("train-stopped")
    page.write("train-out", "../elsewhere")
    page.status("train", "not there in the folders")
    page.until(lambda: not page.all("#train-loss img, #train-samples img"))  # of the run before


def test_two_users_see_nothing_of_each_other(page, server, seen, tmp_path):
    other = Page(server[0], tmp_path / "home", seen)
    try:
        for user, seeds in ((page, "1-2"), (other, "8-9")):
            user.write("sample-model", "runs/digits")
            user.write("sample-seeds", seeds)
        page.click("sample-go")
        other.click("sample-go")
        for user, seeds in ((page, {1, 2}), (other, {8, 9})):
            user.status("sample", "done in")
            found = set()
            for content in drawn(user, 2):
                path = tmp_path / "one.png"
                path.write_bytes(content)
                found.add(recipe(path)["seed"])
            assert found == seeds
        other.shot("two-users")
        assert other.contacted() == {"127.0.0.1"}
    finally:
        other.driver.quit()


def test_bad_input_is_a_message_and_the_server_goes_on(page, folders, server, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    page.upload("sample-dropped", broken)
    page.status("sample", "no picture that can be read")
    page.write("sample-seeds", "0-9999")
    page.click("sample-go")
    page.status("sample", "at most 256 at once")
    shutil.copytree(folders / "runs" / "digits", folders / "runs" / "gone")
    (folders / "runs" / "gone").touch()
    page.open()
    assert page.value("sample-model") == "runs/gone"  # the newest, later than the server
    shutil.rmtree(folders / "runs" / "gone")
    page.click("sample-go")
    page.status("sample", "not there in the folders")
    page.open()
    assert page.value("sample-model") != "runs/gone"
    page.write("sample-model", "runs/gone")
    page.until(lambda: "'runs/gone': not there in" in page.find("#sample-model").text)
    page.shot("bad-gone")
    page.tab("Edit")
    page.write("edit-model", "runs/digits")
    page.upload("edit-picture", broken)
    page.status("edit", "not a usable picture")
    page.shot("bad-picture")
    for path in ("/models?model=/etc/passwd", "/gradio_api/file=/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            fetched(server[0] + path)
        assert refused.value.code == 404
        refused.value.close()


def test_a_closed_browser_stops_its_job(page, server, seen, tmp_path):
    other = Page(server[0], tmp_path / "home", seen)
    other.write("sample-model", "runs/digits")
    other.write("sample-seeds", "0-255")
    other.write("sample-steps", "10000")
    other.click("sample-go")
    other.status("sample", "network call")
    other.driver.quit()
    page.write("sample-model", "runs/digits")
    page.click("sample-go")
    page.status("sample", "done in")  # its place is free
