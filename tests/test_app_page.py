"""The page of `examples/app.py` in Chromium, on the loopback interface: a Space and a script.

    python tests/test_app_page.py docs/images/app.png

takes the picture of it that the documents show.
"""

import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from browser import TIMEOUT, browsing, needs
from hub_server import HubServer
from huggingface_hub import SpaceCard
from processes import free_port
from test_app import PIPES, SCRIPT, app

ROOT = Path(__file__).parents[1]
COUNT = "Evaluations of the network for each image: "


class Refusals:
    """A proxy on the loopback interface that counts who wants to go out, and lets nobody."""

    def __init__(self):
        self.socket, self.asked = socket.create_server(("127.0.0.1", 0)), []
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            caller, _ = self.socket.accept()
            self.asked.append(caller.recv(1000))
            caller.close()


@contextmanager
def served(log, *flags, script=SCRIPT, proxy=None):
    """Run the page in a process of its own, and give its address."""
    port = free_port()
    env = os.environ | {"GRADIO_SERVER_PORT": str(port), "PYTHONPATH": str(ROOT / "src")}
    if proxy is not None:
        ways = {f"{kind}_proxy": proxy for kind in ("http", "https", "all")}
        env |= ways | {name.upper(): url for name, url in ways.items()}
        env |= {"no_proxy": "127.0.0.1,localhost", "NO_PROXY": "127.0.0.1,localhost"}
    with log.open("w") as file:
        command = [sys.executable, script.name, *flags]
        server = subprocess.Popen(command, cwd=script.parent, env=env, stdout=file, stderr=file)
    try:
        while "Running on local URL" not in log.read_text():
            assert server.poll() is None, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def draw(page, evaluations, column=0, **entries):
    """Fill in entries of a column by their labels, draw, and wait for so many evaluations."""
    for label, value in entries.items():
        entry = page.get_by_label(label, exact=True)
        entry = entry.nth(column if entry.count() > 1 else 0)
        entry.fill(str(value))
        entry.press("Enter")
    if entries:
        page.get_by_role("button", name="Draw").click()
    wait(page, evaluations, column)


def wait(page, evaluations, column=0):
    from playwright.sync_api import expect

    words = page.get_by_text(COUNT).nth(column)
    expect(words).to_contain_text(f"{COUNT}{evaluations}.", timeout=TIMEOUT)


def pictures(page, column, row=0):
    """Return what a column shows: the images, in row 1 the first one's way, in 2 the forecasts."""
    images = page.locator(".sheet").nth(3 * column + row).locator("img")
    return images.evaluate_all("images => images.map(image => image.src)")


def wait_for_images(page, number):
    """Wait until the first column that shows pictures shows so many images."""
    from playwright.sync_api import expect

    images = page.locator(".sheet").first.locator("img")
    expect(images).to_have_count(number, timeout=TIMEOUT)


def told(page, message, columns=1, **entries):
    """Fill in entries of the first column, draw, and wait for a message in place of pictures."""
    from playwright.sync_api import expect

    for label, value in entries.items():
        entry = page.get_by_label(label, exact=True).first
        entry.fill(str(value))
        entry.press("Enter")
    page.get_by_role("button", name="Draw").click()
    expect(page.locator(".refusal").filter(has_text=message)).to_have_count(1, timeout=TIMEOUT)
    expect(page.locator(".refusal")).to_have_count(1)
    expect(page.locator(".sheet")).to_have_count(3 * (2 - columns), timeout=TIMEOUT)


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """A Space with a tiny pipeline of three classes with names, as the script writes it."""
    folder = tmp_path_factory.mktemp("space")
    PIPES["named"]().save_pretrained(folder / "model")
    command = [
        sys.executable,
        SCRIPT,
        "--model",
        folder / "model",
        "--space_dir",
        folder / "space",
    ]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT / "src")})
    return folder / "space"


@pytest.mark.slow
@needs("gradio")
def test_a_space_says_how_it_is_built(space):
    about = SpaceCard.load(space / "README.md").data
    assert about.sdk == "gradio" and about.sdk_version == version("gradio")
    assert (space / about.app_file).read_text() == SCRIPT.read_text()
    assert (space / "requirements.txt").read_text().startswith("fm_diffusers @ git+https://")


@pytest.mark.slow
@needs("gradio")
def test_the_documented_command_puts_it_on_the_hub(space):
    (command,) = re.findall(r"^hf (upload .*)$", (ROOT / "docs/app.md").read_text(), flags=re.M)
    words = command.replace("outputs/space", str(space)).split()
    with HubServer() as hub:
        run = [sys.executable, "-m", "huggingface_hub.cli.hf", *words]
        subprocess.run(run, check=True, env=hub.env)
        (pushed,) = hub.repos.values()
        assert list(hub.repos) == [("space", words[1])]
    files = {str(f.relative_to(space)) for f in space.rglob("*") if f.is_file()}
    assert files <= set(pushed.files) and "pipeline/model_index.json" in files


def written(tmp_path, folder):
    """Write the pipeline of `tmp_path` as a Space."""
    if not (tmp_path / "model").exists():
        PIPES["named"]().save_pretrained(tmp_path / "model")
    app.main(app.AppArguments(model=str(tmp_path / "model"), space_dir=str(folder)))


@needs("gradio")
def test_a_space_is_written_again_and_its_upload_is_told(tmp_path, capsys):
    for folder in (tmp_path / "a space", tmp_path / "a space"):
        written(tmp_path, folder)
        assert (folder / "README.md").read_text().startswith(app.MARK)
        told = capsys.readouterr().out
        assert f"wrote a Space to {folder}: README.md, " in told
        assert f"hf upload USER/NAME '{folder}' . --repo-type space\n" in told


@needs("gradio")
def test_files_that_are_no_space_are_not_replaced(tmp_path):
    for name in ("README.md", "app.py", "notes.txt"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(ValueError, match=f"--space_dir {folder} holds files.*empty it"):
            written(tmp_path, folder)
        assert {f.name: f.read_text() for f in folder.iterdir()} == {name: "mine"}


@needs("gradio")
def test_a_space_needs_a_folder_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    refused = {" ": "is empty: name a folder", "file": "cannot be written.*choose another"}
    for folder, message in (refused | {"/proc/x": "cannot be written", "": "is empty"}).items():
        with pytest.raises(ValueError, match=f"^--space_dir {folder.strip()}.*{message}"):
            written(tmp_path, folder)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["file", "model"]


@needs("gradio")
@pytest.mark.parametrize("port", ["abc", "", "0", "99999"])
def test_a_port_that_is_none_is_told(monkeypatch, port):
    monkeypatch.setenv("GRADIO_SERVER_PORT", port)
    with pytest.raises(ValueError, match=f"GRADIO_SERVER_PORT must be .* got '{port}': set"):
        app.main(app.AppArguments(model="no/model"))


@pytest.mark.slow
@needs("gradio", "playwright", chromium=True)
def test_a_space_draws_by_two_samplers_and_asks_nobody(space, tmp_path):
    proxy, log = Refusals(), tmp_path / "log"
    with served(log, script=space / "app.py", proxy=proxy.url) as url, browsing(url) as browsed:
        page, elsewhere = browsed
        draw(page, 40), draw(page, 100, column=1)
        first, noise = pictures(page, 0), pictures(page, 0, row=1)[0]
        assert len(first) == len(pictures(page, 1)) == 10
        assert first != pictures(page, 1) and noise == pictures(page, 1, row=1)[0]

        draw(page, 6, Steps=3)
        fewer = pictures(page, 0)
        draw(page, 12, Solver="heun")
        heun = pictures(page, 0)
        draw(page, 4, column=1, Steps=2)
        assert len({*map(tuple, (first, fewer, heun, pictures(page, 1)))}) == 4
        assert noise == pictures(page, 0, row=1)[0] == pictures(page, 1, row=1)[0]

        told(page, "Steps must be a whole number from 1 to 1000, got 0", Steps=0, Images=3)
        wait_for_images(page, 3)  # of the other column
        told(page, "Class must be one of its list", columns=2, Steps=3, Class="cube")
        told(page, "Seed is empty", columns=2, Class="square", Seed="")
        draw(page, 6, Images=2, Seed=0, **{"Guidance scale": 1, "Solver": "heun"})
        wait_for_images(page, 2)
        told(page, 'another solver, "predictor_corrector"', Solver="flow_map")
        assert elsewhere == []
    assert proxy.asked == [] and "Traceback" not in log.read_text()


@pytest.mark.slow
@needs("gradio", "playwright", chromium=True)
def test_a_flow_map_draws_in_one_evaluation_and_refuses_another_guidance(tmp_path):
    model = ["--model", str(ROOT / "pretrained/mnist-one-step")]
    with served(tmp_path / "log", *model) as url, browsing(url) as (page, _):
        draw(page, 1), draw(page, 4, column=1)
        one = pictures(page, 0)
        assert pictures(page, 0, row=2)[0] == one[0]
        told(page, "must be 2.0, as the network has learned", columns=2, **{"Guidance scale": 3})
        draw(page, 5, Solver="predictor_corrector", Steps=5, **{"Guidance scale": 2})
        assert pictures(page, 0) != one and pictures(page, 0, row=1)[0] != one[0]


def take_picture(file):
    """Write what the page of `pretrained/mnist` shows at first."""
    log = Path(file).with_suffix(".log")
    with served(log, "--model", str(ROOT / "pretrained/mnist")) as url, browsing(url) as (page, _):
        draw(page, 40), draw(page, 100, column=1)
        page.screenshot(path=file, full_page=True)
    log.unlink()


if __name__ == "__main__":
    take_picture(sys.argv[1])
