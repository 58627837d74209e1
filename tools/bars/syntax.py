"""What a package's source looks like: nodes of its syntax tree, long functions, long files."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NOT_CODE = (
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
)

PRAGMA = re.compile(r"\s*# (pyright|noqa|fmt|type): ?.*$")
"""What is said to a tool at the end of a line, which cannot stand elsewhere."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Source:
    """Measures of some files."""

    nodes: int = 0
    code_lines: int = 0
    """Without empty lines, comments and docstrings."""
    function_nodes: list[int] = field(default_factory=list)
    function_lines: dict[str, int] = field(default_factory=dict)
    """By file and name."""
    file_lines: dict[str, int] = field(default_factory=dict)
    widest_line: int = 0
    breathless: list[str] = field(default_factory=list)
    """Functions of BREATH lines and more without one blank line inside."""

    @property
    def density(self) -> float:
        """Nodes of the syntax tree a line of code."""
        return self.nodes / max(1, self.code_lines)

    @property
    def p90(self) -> int:
        """So many nodes nine of ten functions have at most."""
        return sorted(self.function_nodes)[int(0.9 * len(self.function_nodes))] if self.function_nodes else 0


BREATH = 15


def measured(root: Path, packages: Sequence[str]) -> Source:
    """Of all Python files of these packages."""
    source = Source()
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            _add(source, str(file.relative_to(root)), file.read_text(encoding="utf-8"))
    return source


def _add(source: Source, name: str, text: str) -> None:
    tree, lines = ast.parse(text), text.splitlines()
    source.nodes += sum(1 for _ in ast.walk(tree))
    source.code_lines += len(_code_lines(text, tree))
    source.file_lines[name] = len(lines)
    source.widest_line = max([source.widest_line, *(len(PRAGMA.sub("", line)) for line in lines)])

    for function in _functions(tree):
        place = f"{name}: {function.name}"
        end = function.end_lineno or function.lineno
        own_lines = lines[function.lineno - 1 : end]
        source.function_nodes.append(sum(1 for _ in ast.walk(function)))
        source.function_lines[place] = len(own_lines)
        if len(own_lines) >= BREATH and all(line.strip() for line in own_lines):
            source.breathless.append(place)


def _functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def _code_lines(text: str, tree: ast.AST) -> set[int]:
    """Numbers of the lines that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NOT_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))

    for node in ast.walk(tree):  # a docstring, or one behind the constant that it describes
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and type(node.value.value) is str
        ):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines
