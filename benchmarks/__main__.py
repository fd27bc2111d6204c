"""Measure again what README and docs say: all that is quick, or the parts that are named.

    python -m benchmarks --list
    python -m benchmarks ode sde --mnist ylecun/mnist

Without names it runs every part of `parts.PARTS` that needs no training of its own and takes
`QUICK` minutes of a core at most, those of MNIST only if `--mnist` says where it is. What a named
part needs and is not there is trained first, by the command in `parts.NEEDS`.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from benchmarks.parts import NEEDS, PARTS, Part

#: Minutes of one core up to which a part runs unasked.
QUICK = 15


def chosen(names: list[str], mnist: str | None) -> list[str]:
    """Return the names of the parts to run.

    Raises:
        ValueError: for a name that is no part, or a part of MNIST if it is not said where that is.
    """
    if unknown := [name for name in names if name not in PARTS]:
        raise ValueError(f"parts must be of {', '.join(PARTS)}, got {', '.join(unknown)}")
    if lacking := [name for name in names if asks_mnist(PARTS[name]) and mnist is None]:
        raise ValueError(
            f"{', '.join(lacking)} measure on MNIST: pass --mnist ylecun/mnist, or a folder of it"
        )
    return names or [
        name
        for name, part in PARTS.items()
        if part.minutes <= QUICK and not part.needs and (mnist or not asks_mnist(part))
    ]


def asks_mnist(part: Part) -> bool:
    """Return whether a part, or what it needs, takes MNIST."""
    return any("{mnist}" in words for words in (part.command, *map(NEEDS.get, part.needs)))


def commands(part: Part, mnist: str | None, out: str) -> list[list[str]]:
    """Return the command lines that are run: first those that make what is missing."""
    missing = [name for name in part.needs if not Path(name).exists()]
    makings = [NEEDS[name] + ("" if "." in name else f" --output_dir {name}") for name in missing]
    told = {"mnist": shlex.quote(mnist or ""), "out": shlex.quote(out)}
    return [
        [sys.executable, *shlex.split(words.format(**told))] for words in (*makings, part.command)
    ]


def table() -> str:
    """Return all parts as a table of Markdown."""
    lines = ["| part | minutes | needs | quoted by | command |", "|---|---:|---|---|---|"]
    for name, part in PARTS.items():
        needs = ", ".join(["MNIST"] * asks_mnist(part) + [*part.needs])
        cells = [name, f"{part.minutes:g}", needs, part.page, f"`python {part.command}`"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(names: list[str], mnist: str | None, out: str) -> int:
    """Run the parts one after the other and return how many of them failed."""
    failed = []
    for name in chosen(names, mnist):
        Path(out).mkdir(parents=True, exist_ok=True)
        for words in commands(PARTS[name], mnist, out):
            print(f"{name}: {shlex.join(['python', *words[1:]])}", flush=True)
            if subprocess.run(words).returncode:
                failed.append(name)
                break
    print(f"failed: {', '.join(failed) or 'none'}; results are in {out}")
    return len(failed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help="by default all quick ones")
    parser.add_argument("--list", action="store_true", help="print the table and end")
    parser.add_argument("--mnist", help="the data set of that name: a Hub id or a folder")
    parser.add_argument("--output_dir", default="outputs/benchmarks")
    given = parser.parse_args()
    if given.list:
        print(table())
        sys.exit()
    try:
        sys.exit(main(given.parts, given.mnist, given.output_dir))
    except ValueError as error:
        parser.error(str(error))
