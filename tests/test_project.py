"""What the project may hold and depend on: licences that go with ours, and no secrets."""

import configparser
import re
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
#: What goes with Apache-2.0, in the words of those who publish.
PERMISSIVE = re.compile(r"\b(Apache|MIT|BSD|ISC|HPND|MPL|PSF|Python Software Foundation)\b")
RESTRICTIVE = re.compile(r"\b[AL]?GPL|\bNC\b|NonCommercial|SSPL|Proprietary", re.IGNORECASE)
#: Whose licence does not, and why that does no harm.
PEERS = {"flow_matching": "CC BY-NC: a peer in benchmarks, not imported by the package"}
#: Where tokens are written as they look, without one: this file.
SECRETS = {
    "Hugging Face": r"\bhf_[A-Za-z0-9]{30,}",
    "AWS": r"\b(AKIA|ASIA)[0-9A-Z]{16}\b",
    "GitHub": r"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{50,})",
    "OpenAI and the like": r"\bsk-[A-Za-z0-9_-]{32,}",
    "Slack": r"\bxox[abprs]-[0-9A-Za-z-]{10,}",
    "Google": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "Weights & Biases": r"\bWANDB_API_KEY\s*=\s*['\"]?[0-9a-f]{40}",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "password in an address": r"\b[a-z]+://[^\s/:@'\"{}<>]+:[^\s/:@'\"{}<>]+@",
}


def requirements():
    """Return the names of all that setup.cfg asks for, extras included."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    lines = [line.strip() for text in lists for line in text.splitlines()]
    return sorted({re.match(r"[\w.-]+", line)[0] for line in lines if line and line[0] != "%"})


def licence(name):
    """Return what an installed package says of its licence, the first that it says."""
    about = metadata.metadata(name)
    classifiers = [c for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    first_line = (about.get("License") or "").partition("\n")[0]
    return about.get("License-Expression") or " ".join(classifiers) or first_line


@pytest.mark.skipif(not (ROOT / "setup.cfg").exists(), reason="is run without the project")
@pytest.mark.parametrize("name", requirements())
def test_dependencies_have_licences_that_go_with_apache_2(name):
    try:
        said = licence(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    if name not in PEERS:
        assert PERMISSIVE.search(said) and not RESTRICTIVE.search(said), f"{name}: {said!r}"


def test_peers_of_benchmarks_are_not_imported_by_the_package():
    for file in (ROOT / "src").rglob("*.py"):
        for name in PEERS:
            assert not re.search(rf"^\s*(from|import) {name}\b", file.read_text(), re.MULTILINE)


def test_no_tracked_file_holds_a_secret():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("is not in a clone of git")
    found = []
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file == Path(__file__) or not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="ignore")
        found += [f"{name}: {kind}" for kind, what in SECRETS.items() if re.search(what, text)]
    assert not found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("Hugging Face", "token = 'hf_" + "aB3" * 11 + "x'"),
        ("AWS", "AKIA" + "ABCD" * 4),
        ("GitHub", "ghp_" + "a1" * 18),
        ("private key", "-----BEGIN RSA " + "PRIVATE KEY-----"),
        ("password in an address", "https://me:" + "word@host/x"),
    ],
)
def test_secrets_are_known_when_they_are_seen(kind, text):
    assert re.search(SECRETS[kind], text)
