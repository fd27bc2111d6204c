"""Mutants: the source of the mathematics with one small fault, in the body of a function.

A fault is another operator, comparison or number, a condition turned round, a return of None, two
arguments swapped, or one left out. Texts, and what is raised or asserted, stay as they are.
"""

import ast
import copy
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

SOURCE = Path(__file__).parents[1] / "src" / "fm_diffusers"
MUTATED = ("paths", "predictions.py", "diffusions", "grids", "solvers", "scheduling/timetable.py")

SWAPS = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult},
    **{ast.Pow: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And},
    **{ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt},
    **{ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is},
    **{ast.In: ast.NotIn, ast.NotIn: ast.In},
}


@dataclass(frozen=True)
class Mutant:
    """One fault: its file, name and first line of its function, its place, what stands there."""

    file: Path
    function: tuple[str, int]
    node: ast.AST
    fault: ast.AST

    @property
    def package(self):
        """Return the one of `MUTATED` that it is in."""
        name = self.file.relative_to(SOURCE).as_posix()
        return next(row for row in MUTATED if name.startswith(row))

    @property
    def lines(self):
        """Return the lines at which the fault acts."""
        last = self.node.test if isinstance(self.node, ast.If) else self.node
        return range(self.node.lineno, last.end_lineno + 1)

    def __str__(self):
        was, now = (ast.unparse(node).replace("\n", " ") for node in (self.node, self.fault))
        where = f"{self.file.relative_to(SOURCE)}:{self.node.lineno}"
        return f"{where} `{was[:90]}` -> `{now[:90]}`"

    def codes(self):
        """Return pairs of code objects: those that the fault changes, without it and with it."""
        here, fault, text = place(self.node), self.fault, self.file.read_text()

        class Put(ast.NodeTransformer):
            def visit(self, node):
                return fault if place(node) == here else self.generic_visit(node)

        trees = ast.parse(text), ast.fix_missing_locations(Put().visit(ast.parse(text)))
        before, after = (functions(compile(tree, str(self.file), "exec")) for tree in trees)
        if len(before) != len(after):  # a lambda is left out: that of the function itself
            before, after = (
                [c for c in found if (c.co_name, c.co_firstlineno) == self.function]
                for found in (before, after)
            )
        return [(b, a) for b, a in zip(before, after, strict=True) if b != a]


def place(node):
    """Return what tells a node of a file from all others."""
    names = "lineno", "col_offset", "end_lineno", "end_col_offset"
    return type(node), *(getattr(node, name, None) for name in names)


def functions(code):
    """Return the code objects of all functions in one, in the order of the source."""
    inner = [c for c in code.co_consts if isinstance(c, CodeType)]
    return inner + [c for function in inner for c in functions(function)]


def changed(node, **fields):
    """Return a copy of a node with other fields."""
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def faults(node):
    """Yield what may stand in the place of a node."""
    match node:
        case ast.BinOp() | ast.BoolOp() if type(node.op) in SWAPS:
            yield changed(node, op=SWAPS[type(node.op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not()):
            yield node.operand
        case ast.Compare():
            for i, op in enumerate(node.ops):
                other = SWAPS[type(op)]()
                yield changed(node, ops=[*node.ops[:i], other, *node.ops[i + 1 :]])
        case ast.Constant(value=bool()):
            yield changed(node, value=not node.value)
        case ast.Constant(value=int() | float()):
            yield changed(node, value=node.value + 1)
        case ast.Return(value=ast.AST()) if ast.unparse(node.value) != "None":
            yield changed(node, value=ast.Constant(None))
        case ast.If() | ast.IfExp() if not isinstance(node.test, ast.Compare | ast.BoolOp):
            yield changed(node, test=ast.UnaryOp(ast.Not(), node.test))
        case ast.Call():
            if len(node.args) > 1 and not any(isinstance(a, ast.Starred) for a in node.args[:2]):
                yield changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
            for i, word in enumerate(node.keywords):
                if word.arg:
                    yield changed(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])


def inside(node):
    """Yield the nodes of a function's body, without annotations, texts, errors and assertions."""
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            kept = name not in ("annotation", "returns", "args", "decorator_list")
            kept = kept or (name == "args" and isinstance(node, ast.Call))
            dropped = ast.Raise | ast.Assert | ast.JoinedStr
            if isinstance(child, ast.AST) and kept and not isinstance(child, dropped):
                yield child
                yield from inside(child)


def mutants():
    """Return all mutants, in the order of the source."""
    found = []
    for name in MUTATED:
        files = sorted((SOURCE / name).glob("*.py")) if "." not in name else [SOURCE / name]
        for file in files:
            tree = ast.parse(file.read_text())
            bodies = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
            for function in (f for b in bodies for f in b.body if isinstance(f, ast.FunctionDef)):
                first = min([function.lineno, *(d.lineno for d in function.decorator_list)])
                for node in inside(function):
                    found += [Mutant(file, (function.name, first), node, f) for f in faults(node)]
    return found
