"""The site is built without a warning and asks no network; its notebook and pictures run."""

import importlib.util
import json
import re
import runpy
import subprocess
import sys
import threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import browsing, needs

ROOT = Path(__file__).parents[1]
SITE = ROOT / "docs" / "_site"
as_markdown = None
if importlib.util.find_spec("griffe"):
    as_markdown = runpy.run_path(str(SITE / "docstrings.py"))["as_markdown"]


class Links(HTMLParser):
    """What a page loads, what it links to, and the places in it."""

    def __init__(self, page):
        super().__init__()
        self.loaded, self.linked, self.places = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.places |= {attrs.get("id"), attrs.get("name")}
        loads = tag in ("img", "script") or attrs.get("rel") in ("stylesheet", "preconnect")
        found = [attrs[name] for name in ("src", "href") if attrs.get(name)]
        (self.loaded if loads else self.linked).extend(found)


class Quiet(SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = ["-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return folder


@pytest.mark.slow
@needs("mkdocs", "material", "mkdocstrings", "latex2mathml")
def test_every_link_of_the_site_resolves_and_nothing_is_loaded_from_elsewhere(site):
    pages = {page: Links(page) for page in sorted(site.rglob("*.html"))}
    assert len(pages) > 30
    for page, found in pages.items():
        if page.name == "404.html":  # served from anywhere, with links from the root
            continue
        assert [link for link in found.loaded if "//" in link] == [], page
        for link in found.loaded + found.linked:
            target, _, place = link.partition("#")
            if ":" in target or "//" in target:
                continue
            file = (page.parent / target).resolve() if target else page
            file = file / "index.html" if file.is_dir() else file
            assert file.exists(), (page.name, link)
            if place and file.suffix == ".html":
                assert place in pages[file].places, (page.name, link)


@pytest.mark.slow
@needs("mkdocs", "material", "mkdocstrings", "latex2mathml", "playwright", chromium=True)
def test_the_search_finds_a_page_without_a_network(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with browsing(f"http://127.0.0.1:{server.server_port}/") as (page, elsewhere):
        page.get_by_placeholder("Search").fill("certificate")
        found = page.locator(".md-search-result__link")
        found.first.wait_for()
        links = found.evaluate_all("links => links.map(link => link.href)")
        assert any("/certificate" in link for link in links)
        found.first.click()
        page.wait_for_url("**/certificate.html*")
        assert elsewhere == []
    server.shutdown()


@pytest.mark.slow
@needs("mkdocs", "material", "mkdocstrings", "latex2mathml")
def test_mathematics_is_drawn_not_shown_as_source(site):
    drawn = 0
    for page in site.rglob("*.html"):
        text = page.read_text()
        drawn += text.count("<math")
        prose = re.sub(r"<(code|pre|script|style)\b.*?</\1>", "", text, flags=re.S)
        for left in ("arithmatex", ":math:", ".. math::", r"\(", "$$"):
            assert left not in prose, (page.name, left)
    assert drawn > 400


@needs("griffe")
@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        (":math:`x_t`", "$x_t$"),
        ("A\n\n.. math:: a = b\n          + c\n\nB", "A\n\n\n$$\na = b + c\n$$\n\n\nB"),
        ("Example:\n    >>> 1\n    1", "Examples:\n    >>> 1\n    1"),
        (
            "====  ====\n`a`   long\n      er\n`b`   :math:`|x|`\n====  ====",
            "|   |   |\n| --- | --- |\n| `a` | long er |\n| `b` | $\\vert x\\vert$ |",
        ),
        (
            "==  ===\nis  for\n==  ===\na   b\n==  ===\n\nend",
            "| is | for |\n| --- | --- |\n| a | b |\n\n\nend",
        ),
    ],
    ids=["role", "block", "example", "table", "head"],
)
def test_docstrings_become_markdown(docstring, markdown):
    assert as_markdown(docstring) == markdown


@pytest.mark.slow
@needs("nbclient", "nbformat", "ipykernel", "matplotlib")
def test_the_notebook_runs():
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(ROOT / "examples/theory.ipynb", as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 5


@needs("matplotlib")
def test_the_cells_of_the_notebook_run(monkeypatch):
    plt, drawn = pytest.importorskip("matplotlib.pyplot"), []
    plt.switch_backend("Agg"), plt.close("all")
    monkeypatch.setattr(plt, "show", lambda: drawn.extend(plt.get_fignums()) or plt.close("all"))
    names = {}
    for cell in json.loads((ROOT / "examples/theory.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "theory.ipynb", "exec"), names)
    drawn += plt.get_fignums()
    plt.close("all")
    assert len(drawn) == 5


def test_the_notebook_is_kept_without_outputs():
    assert '"outputs": [\n' not in (ROOT / "examples/theory.ipynb").read_text()


@needs("matplotlib", "sklearn")
def test_the_pictures_of_the_theory_are_drawn(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    monkeypatch.setattr(sys, "argv", ["plot_theory.py", "--output_dir", str(tmp_path)])
    runpy.run_path(str(ROOT / "examples/plot_theory.py"), run_name="__main__")
    drawn = {file.name for file in tmp_path.glob("*.png")}
    assert drawn == {"regression.png", "predictions.png", "ends.png"}
    assert drawn <= {file.name for file in (ROOT / "docs/images").glob("*.png")}
