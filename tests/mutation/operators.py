"""What may be wrong in a piece of maths: every small change of a module's syntax tree.

Docstrings, messages, annotations, decorators and what stands in a `raise` are left alone; the
condition that guards a raise is not.
"""

import ast
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RENAMED = {
    "exp": "expm1",
    "expm1": "exp",
    "log": "log1p",
    "log1p": "log",
    "sum": "mean",
    "mean": "sum",
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
}
COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
# 2 % of such a constant (the tail of a series, the floor of a rounding error) is itself rounding
NEGLIGIBLE = 1e-12


@dataclass(frozen=True, eq=False)
class Mutant:
    """One change in one module.

    Attributes:
        path: the module's file.
        scope: the function it lies in, such as "Adam.step" or "normal_kl.pullback"; a class for
            its attributes, "" for the module's constants.
        line: where.
        operator: the kind of change.
        before, after: the statement, or the head of a compound one.
        assigned: the names a class or module gets from the statement, outside its functions.
        guard: whether the statement only guards a raise or states a default argument.
    """

    path: Path
    scope: str
    line: int
    operator: str
    before: str
    after: str
    assigned: tuple[str, ...]
    guard: bool
    tree: ast.Module
    old: ast.AST
    new: ast.AST

    @property
    def in_function(self) -> bool:
        """Whether it takes effect when a function is called, not when the module is imported."""
        return bool(self.scope) and not self.assigned

    def code(self):
        """The mutated module, compiled."""
        tree = ast.fix_missing_locations(_replaced(self.tree, self.old, self.new))
        return compile(tree, str(self.path), "exec")

    def __str__(self) -> str:
        same = len(os.path.commonprefix([self.before, self.after]))
        before, after = (_cut(text, same) for text in (self.before, self.after))
        where = f"{self.path.name}:{self.line} {self.scope or 'module'}"
        return f"{where}: {before}  ->  {after}"


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a module, in the order of its lines, no two alike."""
    tree = ast.parse(path.read_text("utf-8"))
    found = {}
    for scope, statement, assigned in _statements(tree.body, ""):
        before = _head(statement)
        for node in _inside(statement):
            for operator, new in changes(node):
                ast.copy_location(new, node)
                after = _head(_replaced(statement, node, new))
                mutant = Mutant(
                    path, scope, node.lineno, operator, before, after, assigned,
                    _guards(statement), tree, node, new,
                )  # fmt: skip
                if before != after:
                    found.setdefault((scope, statement.lineno, before, after), mutant)
    return list(found.values())


def changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(operator, what stands in the node's place), for one node."""
    if (value := _number(node)) is not None:
        yield from _constants(node, value)
        return
    match node:
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.BinOp():
            yield from _arithmetic(node)
        case ast.UnaryOp(ast.USub(), operand):
            yield "sign", operand
        case ast.UnaryOp(ast.Not(), operand):
            yield "condition", operand
        case ast.BoolOp(op, values):
            yield "condition", ast.BoolOp(ast.And() if isinstance(op, ast.Or) else ast.Or(), values)
        case ast.Compare():
            yield from _comparisons(node)
        case ast.If(test, body, orelse) | ast.IfExp(test, body, orelse):
            if not isinstance(test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                yield "condition", type(node)(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Subscript():
            yield from _indices(node)
        case ast.Call():
            yield from _calls(node)
        case ast.Return(ast.Tuple(elts)):
            for swapped in _swaps(elts):
                yield "swap", ast.Return(ast.Tuple(swapped, ast.Load()))
        case ast.Return(ast.BinOp() | ast.Call() | ast.Name() | ast.Subscript() as value):
            yield "sign", ast.Return(ast.UnaryOp(ast.USub(), value))
            yield "factor", ast.Return(ast.BinOp(ast.Constant(1.02), ast.Mult(), value))
        case ast.AugAssign(target, op, value):
            opposite = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult}
            if type(op) in opposite:
                kind = "sign" if isinstance(op, ast.Add | ast.Sub) else "operator"
                yield kind, ast.AugAssign(target, opposite[type(op)](), value)
            yield "term", ast.Pass()
        case ast.Expr(ast.Call()) | ast.Assign([ast.Subscript()]):
            yield "statement", ast.Pass()


def _constants(node, value):
    at = "constant"
    yield at, ast.Constant(value + 1)
    if isinstance(value, int):
        yield at, ast.Constant(value - 1)
    elif abs(value) > NEGLIGIBLE:
        yield "factor", ast.Constant(1.02 * value)
    if isinstance(node, ast.UnaryOp) and abs(value) > NEGLIGIBLE:
        yield "sign", node.operand


def _arithmetic(node: ast.BinOp):
    a, b = node.left, node.right
    if any(isinstance(part, ast.JoinedStr) or _is_text(part) for part in (a, b)):
        return
    match node.op:
        case ast.Add():
            yield "sign", ast.BinOp(a, ast.Sub(), b)
            yield from (("term", a), ("term", b))
        case ast.Sub():
            yield "sign", ast.BinOp(a, ast.Add(), b)
            yield from (("term", a), ("term", ast.UnaryOp(ast.USub(), b)))
        case ast.Mult():
            yield "operator", ast.BinOp(a, ast.Div(), b)
            yield from (("term", a), ("term", b))
        case ast.Div():
            yield "operator", ast.BinOp(a, ast.Mult(), b)
            yield "term", a
        case ast.Pow():
            for sign in (ast.Add(), ast.Sub()):
                yield "operator", ast.BinOp(a, ast.Pow(), ast.BinOp(b, sign, ast.Constant(1)))
        case ast.MatMult():
            yield "swap", ast.BinOp(b, ast.MatMult(), a)
        case ast.FloorDiv():
            yield "operator", ast.BinOp(a, ast.Mod(), b)
        case ast.Mod():
            yield "operator", ast.BinOp(a, ast.FloorDiv(), b)


def _comparisons(node: ast.Compare):
    for i, op in enumerate(node.ops):
        for other in COMPARED[type(op)]:
            ops = [*node.ops[:i], other(), *node.ops[i + 1 :]]
            yield "comparison", ast.Compare(node.left, ops, node.comparators)


def _indices(node: ast.Subscript):
    """Every number or expression among the indices, one higher and one lower."""
    whole = node.slice
    for part in whole.elts if isinstance(whole, ast.Tuple) else [whole]:
        ends = [part.lower, part.upper] if isinstance(part, ast.Slice) else [part]
        for end in ends:
            for moved in _moved(end):
                yield "index", ast.Subscript(node.value, _replaced(whole, end, moved), node.ctx)


def _moved(end) -> list[ast.AST]:
    match end:
        case ast.Name() | ast.Attribute():
            return [ast.BinOp(end, sign, ast.Constant(1)) for sign in (ast.Add(), ast.Sub())]
        case ast.BinOp(left, ast.Add() | ast.Sub(), ast.Constant(int(value))):
            return [ast.BinOp(left, end.op, ast.Constant(v)) for v in (value + 1, value - 1)]
    value = _number(end)
    return [] if value is None else [ast.Constant(value + 1), ast.Constant(value - 1)]


def _calls(node: ast.Call):
    match node.func:
        case ast.Attribute(module, name) if name in RENAMED:
            renamed = ast.Attribute(module, RENAMED[name], ast.Load())
            yield "function", ast.Call(renamed, node.args, node.keywords)
        case ast.Name("min" | "max" as name):
            yield (
                "function",
                ast.Call(ast.Name(RENAMED[name], ast.Load()), node.args, node.keywords),
            )
    symmetric = ast.unparse(node.func).endswith(("min", "max", "minimum", "maximum"))
    for swapped in [] if symmetric else _swaps(node.args):
        yield "swap", ast.Call(node.func, swapped, node.keywords)
    for keyword in node.keywords:
        rest = [k for k in node.keywords if k is not keyword]
        yield "keyword", ast.Call(node.func, node.args, rest)


def _swaps(nodes: list) -> Iterator[list]:
    """The list with two neighbours exchanged."""
    for i in range(len(nodes) - 1):
        if not any(isinstance(node, ast.Starred) for node in nodes[i : i + 2]):
            yield [*nodes[:i], nodes[i + 1], nodes[i], *nodes[i + 2 :]]


def _number(node):
    """The value of a literal number, signed; None for anything else."""
    match node:
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.Constant(int() | float() as value) if not isinstance(value, bool):
            return value
    return None


def _is_text(node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _statements(body: list, scope: str, running: bool = False) -> Iterator[tuple]:
    """Every statement that computes, the function or class it is in, and what it assigns there."""
    for statement in body:
        defines = isinstance(statement, ast.FunctionDef)
        named = defines or isinstance(statement, ast.ClassDef)
        inner = f"{scope}.{statement.name}".strip(".") if named else scope
        if not isinstance(statement, ast.ClassDef | ast.Raise | ast.Import | ast.ImportFrom):
            yield inner, statement, () if running or defines else _assigned(statement)
        for field in ("body", "orelse", "handlers", "finalbody"):
            yield from _statements(getattr(statement, field, []), inner, running or defines)


def _assigned(statement) -> tuple[str, ...]:
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    nodes = [node for target in targets if target for node in ast.walk(target)]
    return tuple(node.id for node in nodes if isinstance(node, ast.Name))


def _inside(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all below it that its own statement computes."""
    yield node
    if _number(node) is not None:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(
                child, ast.stmt | ast.excepthandler | ast.JoinedStr
            ):
                yield from _inside(child)


def _guards(statement: ast.stmt) -> bool:
    only_raises = isinstance(statement, ast.If) and isinstance(statement.body[0], ast.Raise)
    return only_raises or isinstance(statement, ast.FunctionDef)


def _head(statement: ast.AST) -> str:
    """The statement as text; of a compound one the first line."""
    lines = ast.unparse(ast.fix_missing_locations(statement)).splitlines()
    return next(line for line in lines if not line.startswith("@"))


def _cut(text: str, middle: int, reach: int = 50) -> str:
    """The text around one place, if it is long."""
    first, last = max(middle - reach, 0), middle + reach
    return "…" * (first > 0) + text[first:last] + "…" * (last < len(text))


def _replaced(tree, old, new):
    """A copy of the tree with one node exchanged."""
    return copy.deepcopy(tree, {id(old): new})
