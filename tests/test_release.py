"""What is released builds, says what it is, and draws in an environment of its own."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fm_diffusers

ROOT = Path(__file__).parents[1]
HOME = re.compile(r"https://(?:github|raw\.githubusercontent)\.com/[\w-]+/fm_diffusers/(.*)")

pytestmark = pytest.mark.slow


def run(*words, **options):
    """Run a program; what it says is shown if it fails."""
    ran = subprocess.run(words, capture_output=True, text=True, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("is not in a clone of git")
    return [name for name in filter(None, listed.stdout.split("\0")) if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def release(tmp_path_factory, tracked):
    """Build from a copy of the tracked files, in pip's own environment for builds."""
    pytest.importorskip("build", reason="needs build: pip install build")
    folder = tmp_path_factory.mktemp("release")
    asked = ["download", "--no-deps", "-q", "setuptools>=77", "-d", str(folder / "backend")]
    if subprocess.run([sys.executable, "-m", "pip", *asked], capture_output=True).returncode:
        pytest.skip("needs a package index, for setuptools: there is no network")
    for name in tracked:
        file = folder / "source" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "build", "-o", str(folder / "dist"), str(folder / "source"))
    (source,), (wheel,) = (list((folder / "dist").glob(f"*.{end}")) for end in ("gz", "whl"))
    return source, wheel


@pytest.fixture
def metadata(release):
    with zipfile.ZipFile(release[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("dist-info/METADATA")]
        return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_the_package_and_its_licence_and_nothing_else(release, tracked):
    with zipfile.ZipFile(release[1]) as wheel:
        names = set(wheel.namelist())
    package = {name[4:] for name in tracked if name.startswith("src/")}
    assert "fm_diffusers/py.typed" in package
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith("licenses/LICENSE") for name in names)
    with tarfile.open(release[0]) as source:
        inside = {name.partition("/")[2] for name in source.getnames()}
    assert {"LICENSE", "README.md", *(f"src/{name}" for name in package)} <= inside
    assert not {name for name in inside if name.startswith(("tests", "pretrained", "docs"))}


def test_the_metadata_says_what_the_project_says(metadata):
    assert metadata["Version"] == fm_diffusers.__version__
    assert f"version: {metadata['Version']}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {metadata['Version']}\n" in (ROOT / "CHANGELOG.md").read_text()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.10"
    assert "Typing :: Typed" in metadata.get_all("Classifier")


def test_every_link_of_the_readme_leads_to_the_repository(metadata):
    """PyPI shows the README alone: what is beside it in the repository is not there."""
    text = re.sub(r"```.*?```|`[^`]*`", "", metadata.get_payload(), flags=re.S)
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 20 and [link for link in links if not link.startswith("https://")] == []
    places = [found[1] for link in links if (found := HOME.fullmatch(link))]
    files = [place.partition("main/")[2] for place in places if "/main/" in f"/{place}"]
    assert len(files) > 20 and [file for file in files if not (ROOT / file).exists()] == []


def test_the_wheel_runs_the_first_code_of_the_readme(release, tmp_path):
    """Dependencies are those of this environment, ours is the wheel's."""
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "-q", "--no-deps", "--no-index", release[1])
    places = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = run(python, "-I", "-c", places).strip()
    Path(site, "dependencies.pth").write_text(run(sys.executable, "-I", "-c", places))
    code = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)[1]
    code += "import fm_diffusers\nprint(fm_diffusers.__file__)\n"
    code += "print([image.size for image in ode + sde + one])\n"
    (tmp_path / "first.py").write_text(code)
    told = run(python, "-I", tmp_path / "first.py", cwd=ROOT).splitlines()
    assert Path(told[0]).is_relative_to(site) and told[1] == str([(28, 28)] * 6)
