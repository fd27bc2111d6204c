r"""Docstrings of the package, which are reStructuredText in Google style, as Markdown.

Mathematics (:math: roles and `.. math::` blocks) becomes `$...$` and `$$...$$`, a simple table a
Markdown table, a literal block after `::` a fence, `Example:` a section. A comment `#:` above a
table of the package is its docstring, as in Sphinx.
"""

import re
import textwrap
from itertools import pairwise
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

_ROLE = re.compile(r":math:`([^`]*)`")
_BLOCK = re.compile(r"^([ ]*)\.\. math::[ ]*(.*(?:\n(?:\1[ ]+\S.*|[ ]*(?=\n\1[ ]+\S)))*)", re.M)
_LITERAL = re.compile(r"^([ ]*)(.*\w\)?)::\n\n((?:\1[ ]{4}.*\n|\n(?=\1[ ]{4}))+)", re.M)
_TABLE = re.compile(r"^([ ]*)=+(?:  +=+)+\n((?:.*\n)+?)\1=[ =]*$(?=\n\s*\n|\s*\Z)", re.M)


def _inline(found: re.Match) -> str:
    return f"${' '.join(found[1].split())}$"


def _display(found: re.Match) -> str:
    formula = " ".join(found[2].split())
    indent = " " * (-len(found[1]) // 4 * -4)  # in an item of a list Markdown wants four
    return f"\n{indent}$$\n{indent}{formula}\n{indent}$$\n"


def _fence(found: re.Match) -> str:
    indent, head, code = found[1], found[2], textwrap.dedent(found[3]).strip("\n")
    block = f"{head}:\n\n```python\n{code}\n```\n\n"
    return textwrap.indent(block, indent)


def _table(found: re.Match) -> str:
    rule = found[0].splitlines()[0]
    columns = [part.span() for part in re.finditer("=+", rule)]
    gaps = [(before[1], after[0]) for before, after in pairwise(columns)]
    columns[-1] = columns[-1][0], None
    rows, head = [], None
    for line in found[2].splitlines():
        if line.strip() and not line.strip().strip("= "):  # the rule below a head
            head, rows = rows, []
            continue
        cells = [line[slice(*span)].strip() for span in columns]
        crossed = [bool(line[start:end].strip()) for start, end in gaps]
        if any(crossed[1:]):
            raise ValueError(f"a cell is wider than its column, widen the table: {line.strip()!r}")
        if rows and not cells[0]:  # a line that goes on
            rows[-1] = [" ".join(pair).strip() for pair in zip(rows[-1], cells, strict=True)]
        elif crossed[0]:  # names longer than their column
            rows.append([line.strip(), *[""] * (len(columns) - 1)])
        else:
            rows.append(cells)
    head = head[0] if head else [" "] * len(columns)
    lines = [head, ["---"] * len(columns), *([_without_bars(c) for c in row] for row in rows)]
    return "".join(f"{found[1]}| {' | '.join(cells)} |\n" for cells in lines)


def _without_bars(cell: str) -> str:
    """Write the bars of formulas by name: a bar alone would end the cell."""

    def named(role: re.Match) -> str:
        return role[0].replace(r"\|", r"\Vert ").replace("|", r"\vert ")

    return _ROLE.sub(named, cell)


def as_markdown(text: str) -> str:
    r"""Return a docstring as Markdown.

    Example:
        >>> as_markdown(r"The path :math:`x_t = \alpha_t z`.")
        'The path $x_t = \\alpha_t z$.'
    """
    text = _LITERAL.sub(_fence, text + "\n")
    text = _TABLE.sub(_table, text)
    text = _BLOCK.sub(_display, text)
    text = _ROLE.sub(_inline, text)
    return re.sub(r"^([ ]*)Example:$", r"\1Examples:", text, flags=re.M).rstrip("\n")


class AsMarkdown(Extension):
    """Turn every docstring into Markdown while the package is read."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite the docstring of what was found."""
        if isinstance(obj, Attribute) and not obj.docstring and obj.parent.is_module:
            self._read_comment(obj)
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)

    @staticmethod
    def _read_comment(obj: Attribute) -> None:
        lines, above = obj.filepath.read_text().splitlines(), []
        number = obj.lineno - 2
        while number >= 0 and lines[number].startswith("#:"):
            above.insert(0, lines[number].removeprefix("#:").removeprefix(" "))
            number -= 1
        if above:
            text = "\n".join(above)
            obj.docstring = Docstring(text, lineno=number + 2, parent=obj)
