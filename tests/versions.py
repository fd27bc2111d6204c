"""Runs tests with the oldest and the newest releases that setup.cfg allows, and writes a table.

    python tests/versions.py                       # all rows, each in an environment of its own
    python tests/versions.py oldest newest         # some
    python tests/versions.py diffusers==0.41.0     # releases of one's own, joined by commas
    python tests/versions.py --on_top diffusers==0.41.0 --tests tests/test_hooks.py

`--on_top` puts the releases named, without what they ask for, before those of this environment,
which takes seconds and no gigabytes; it serves packages of pure Python. A row goes on where
another one fails. The table is `.versions/table.md`, and what pip and pytest said lies beside it.
"""

import argparse
import configparser
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
WHERE = ROOT / ".versions"
#: Whose releases are tried, by the floors of setup.cfg.
TRIED = ("torch", "diffusers", "transformers", "accelerate", "datasets", "huggingface-hub", "peft")
#: Tests of what other packages decide: hooks, saved files, ways of swapping, a training.
QUICK = [
    f"tests/test_{name}.py"
    for name in (
        *("hooks", "contract", "swap", "hub", "pipeline", "pipeline_text"),
        *("lora", "guidance", "inference_caches", "modular", "training_data", "train_steps"),
    )
]


def floors():
    """Return the oldest release of each package that setup.cfg allows."""
    config = configparser.RawConfigParser()
    config.read(ROOT / "setup.cfg")
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    asked = re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(lists), re.MULTILINE)
    return {name: version for name, version in asked if name in TRIED}


def rows():
    """Return what is pinned in each row of the matrix."""
    pins = {name: f"{name}=={version}" for name, version in floors().items()}
    alone = {f"{name}-oldest": [pin] for name, pin in pins.items()}
    return {"newest": [], "oldest": [*pins.values()], **alone}


def said(log, *words, **kwargs):
    """Run a program, with what it says in a file; return whether it succeeded."""
    with log.open("a") as file:
        done = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, **kwargs)
    return done.returncode == 0


def environment(name, pins, on_top, log):
    """Return the interpreter of a row and the variables that it takes; None if pip fails."""
    folder = WHERE / name
    if on_top:
        target = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade"]
        if pins and not said(log, *target, "--target", str(folder), *pins):
            return None
        path = os.pathsep.join((str(folder), str(ROOT / "src")))
        return sys.executable, os.environ | {"PYTHONPATH": path}
    python = folder / "bin" / "python"
    if not python.exists() and not said(log, sys.executable, "-m", "venv", str(folder)):
        return None
    install = [str(python), "-m", "pip", "install", "-q", "--upgrade", "-e", ".[test]", *pins]
    return (str(python), dict(os.environ)) if said(log, *install) else None


VERSIONS = f"""
from importlib.metadata import version
print(", ".join(f"{{name}} {{version(name)}}" for name in {TRIED}))
"""


def tried(name, pins, on_top, tests):
    """Return a row of the table."""
    log, start = WHERE / f"{name}.log", time.time()
    log.write_text("")
    made = environment(name, pins, on_top, log)
    if made is None:
        last = [line for line in log.read_text().splitlines() if line.startswith("ERROR")][-1:]
        return f"| {name} | {', '.join(pins)} | cannot be installed: {''.join(last)} | |"
    python, variables = made
    found = subprocess.run([python, "-c", VERSIONS], env=variables, capture_output=True, text=True)
    variables |= {"OMP_NUM_THREADS": "1"}
    options = ("-q", "-p", "no:cacheprovider", "--continue-on-collection-errors")
    said(log, python, "-m", "pytest", *options, *tests, env=variables)
    text = log.read_text()
    outcome = re.findall(r"^=* ?(\d+ (?:passed|failed|error).*?) in ", text, re.MULTILINE)
    wrong = re.findall(r"^(?:FAILED|ERROR) (tests/\S+)", text, re.MULTILINE)
    result = "; ".join([*(outcome[-1:] or ["no outcome"]), *wrong])
    return f"| {name} | {found.stdout.strip()} | {result} | {time.time() - start:.0f} s |"


def main():
    """Try the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", nargs="*", help=f"of {', '.join(rows())}, or pins; all by default")
    parser.add_argument("--on_top", action="store_true", help="of this environment")
    parser.add_argument("--tests", nargs="+", default=QUICK)
    args = parser.parse_args()
    WHERE.mkdir(exist_ok=True)
    table = ["| row | releases | tests | time |", "|---|---|---|---|"]
    for name in args.rows or rows():
        pins = rows().get(name, name.split(","))
        if name not in rows() and not all("==" in pin for pin in pins):
            parser.error(f"{name!r} is none of {', '.join(rows())}, and no name==release")
        table.append(tried(name.replace(",", "+"), pins, args.on_top, args.tests))
        (WHERE / "table.md").write_text("\n".join(table) + "\n")
        print(table[-1], flush=True)
    good = [re.search(r"\| \d+ passed[^;]*\|", row) for row in table[2:]]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
