"""YAML text -> plain values with their places. Whatever is written, it ends soon, in values or in one fault
with its place.

The text is read event by event and never expanded: an alias points at the value that it names, whose size is
known by then. So what a few lines of nested aliases would become is counted before anything is built of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml import events as yaml_events
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

MAX_BYTES = 8 * 2**20
MAX_VALUES = 500_000
"""Keys, values and lists, aliases followed: fifty times what a sweep of ten thousand policies has."""
MAX_DEPTH = 20
"""Lists and mappings within each other; a sweep file has four."""
MAX_DIGITS = 1000

TAG = "tag:yaml.org,2002:"
BASES = {"0b": 2, "0o": 8, "0x": 16}
_SURROGATE = re.compile("[\ud800-\udfff]")


class YamlError(ValueError):
    """What is wrong, and its line and column from 1; line 0 where it concerns the whole text."""

    def __init__(self, what: str, line: int = 0, column: int = 0) -> None:
        super().__init__(what)
        self.line, self.column = line, column


@dataclass(slots=True)
class YamlNode:
    """A value with its place. ``size`` and ``height`` count what an alias to it stands for."""

    line: int
    column: int
    value: Any = None
    """A scalar; a list of nodes; or a dict of nodes by key."""
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Of a mapping: where its own keys stand. Keys that were merged in with << have no place of their own."""
    merged: list[YamlNode] = field(default_factory=list)
    size: int = 1
    height: int = 0

    def plain(self) -> Any:
        """The value as dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


@dataclass(slots=True)
class _Open:
    """A list or mapping that has not ended yet."""

    node: YamlNode
    anchor: str | None
    key: str | None = None
    """Of a mapping: the key whose value comes next."""
    merges: bool = False


PARSE_ERRORS = (
    YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    RecursionError,
)
"""What the parser lets through for texts that are no YAML."""


def read_yaml(text: str) -> YamlNode:
    """The one document of a YAML 1.2 text. Raises YamlError, and nothing else, for whatever it is not."""
    if found := _SURROGATE.search(text):
        raise YamlError(
            f"holds half a character ({_escaped(found[0])}), which is no text", *_place(text, found.start())
        )

    try:
        return _Builder().build(YAML(typ="safe", pure=True).parse(text))
    except YamlError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        raise YamlError(f"not valid YAML: {_one_line(error.problem or error.context)}", *place) from None
    except ReaderError as error:
        told = (
            f"not valid YAML: the character {_escaped(text[error.position : error.position + 1])} is not "
            "allowed"
        )
        raise YamlError(told, *_place(text, error.position)) from None
    except PARSE_ERRORS as error:
        raise YamlError(f"not valid YAML: {_one_line(error)}") from None


class _Builder:
    """Events -> one node."""

    def __init__(self) -> None:
        self._resolver = YAML(typ="safe", pure=True).resolver
        self._anchors: dict[str, YamlNode | None] = {}
        """None while what an anchor names has not ended."""
        self._open: list[_Open] = []
        self._root: YamlNode | None = None

    def build(self, events: Iterator[yaml_events.Event]) -> YamlNode:
        documents = 0
        for event in events:
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
            try:
                if isinstance(event, yaml_events.DocumentStartEvent):
                    documents += 1
                    self._check_document(event, documents)
                else:
                    self._take(event, line, column)
            except YamlError as error:
                raise error if error.line else YamlError(str(error), line, column) from None
        return self._root or YamlNode(0, 0)

    @staticmethod
    def _check_document(event: Any, documents: int) -> None:
        if documents > 1:
            raise YamlError("not valid YAML: another document begins here, and one is read")
        if event.version and tuple(event.version) != (1, 2):
            raise YamlError("not valid YAML: YAML 1.2 is read, and no other version")

    def _take(self, event: Any, line: int, column: int) -> None:
        if isinstance(event, yaml_events.AliasEvent):
            self._place_value(self._named(event.anchor), line, column)
        elif isinstance(event, yaml_events.ScalarEvent):
            if self._open and isinstance(self._open[-1].node.value, dict) and self._open[-1].key is None:
                self._take_key(event, line, column)
            else:
                node = YamlNode(line, column, self._scalar(event))
                self._remember(event.anchor, node)
                self._place_value(node, line, column)

        elif isinstance(event, yaml_events.SequenceStartEvent | yaml_events.MappingStartEvent):
            self._begin(
                event, YamlNode(line, column, [] if isinstance(event, yaml_events.SequenceStartEvent) else {})
            )
        elif isinstance(event, yaml_events.SequenceEndEvent | yaml_events.MappingEndEvent):
            ended = self._open.pop()
            _merge(ended.node)
            self._remember(ended.anchor, ended.node)
            self._place_value(ended.node, ended.node.line, ended.node.column)

    def _begin(self, event: Any, node: YamlNode) -> None:
        what, core = ("a list", "seq") if isinstance(node.value, list) else ("a mapping", "map")
        if event.tag not in (None, "!", f"{TAG}{core}"):
            raise YamlError(
                f"not valid YAML: {what} with the tag {_shown(str(event.tag))}; write it without one"
            )
        if self._open and isinstance(self._open[-1].node.value, dict) and self._open[-1].key is None:
            raise YamlError(f"not valid YAML: {what} as a key; a key is a name")
        if len(self._open) >= MAX_DEPTH:
            raise YamlError(f"nested more than {MAX_DEPTH} deep")
        if event.anchor:
            self._anchors[event.anchor] = None
        self._open.append(_Open(node, event.anchor))

    def _named(self, anchor: str) -> YamlNode:
        if anchor not in self._anchors:
            raise YamlError(f"not valid YAML: undefined alias {_shown(anchor)}")
        node = self._anchors[anchor]
        if node is None:
            raise YamlError(f"not valid YAML: the alias {_shown(anchor)} stands within what it names")
        return node

    def _remember(self, anchor: str | None, node: YamlNode) -> None:
        if anchor:
            self._anchors[anchor] = node

    def _take_key(self, event: Any, line: int, column: int) -> None:
        """A key is text as it is written; ``<<`` merges."""
        within = self._open[-1]
        self._remember(event.anchor, YamlNode(line, column, str(event.value)))
        tag = self._tag(event)
        if tag == "merge":
            within.key, within.merges = "<<", True
            return

        key = self._text(event)
        if key in within.node.keys:
            first = within.node.keys[key][0]
            raise YamlError(
                f'not valid YAML: duplicate key "{_shown(key)}", which stands in line {first} too'
            )
        within.node.keys[key] = (line, column)
        within.key = key

    def _place_value(self, node: YamlNode, line: int, column: int) -> None:
        """Put a value that is complete where it belongs, and count it."""
        if not self._open:
            self._root = node
            return
        within = self._open[-1]
        owner = within.node
        if isinstance(owner.value, list):
            owner.value.append(node)
        elif within.key is None:
            raise YamlError("not valid YAML: an alias as a key; a key is a name")
        elif within.merges:
            owner.merged += _mappings(node, line, column)
            within.merges, within.key = False, None
        else:
            owner.value[within.key] = node
            within.key = None

        owner.size += node.size
        owner.height = max(owner.height, node.height + 1)
        if owner.size > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES:,} values, aliases followed", line, column)
        if len(self._open) + owner.height > MAX_DEPTH + 1:
            raise YamlError(f"nested more than {MAX_DEPTH} deep, aliases followed", line, column)

    def _tag(self, event: Any) -> str:
        """``str``, ``int``, ``float``, ``bool``, ``null`` or
        ``merge``, given or seen from the text; others are text."""
        if event.tag not in (None, "!"):
            short = str(event.tag).removeprefix(TAG)
            if short not in ("str", "int", "float", "bool", "null"):
                raise YamlError(
                    f"not valid YAML: a value with the tag {_shown(str(event.tag))}; write it without one"
                )
            return short
        plain = event.implicit[0] and event.tag is None
        seen = self._resolver.resolve(ScalarNode, event.value, (plain, True)) if plain else f"{TAG}str"
        return str(seen).removeprefix(TAG)

    def _text(self, event: Any) -> str:
        value = str(event.value)
        if _SURROGATE.search(value):  # JSON writes characters beyond 16 bits as two halves, and JSON is YAML
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        if found := _SURROGATE.search(value):
            raise YamlError(f"holds half a character ({_escaped(found[0])}), which is no text")
        return value

    def _scalar(self, event: Any) -> Any:
        tag, text = self._tag(event), self._text(event)
        if tag == "null":
            return None
        if tag == "bool":
            return _boolean(text)
        if tag in ("int", "float"):
            if len(text) > MAX_DIGITS:
                raise YamlError(f"a number of {len(text):,} digits; {MAX_DIGITS:,} is the most")
            return _integer(text) if tag == "int" else _float(text)
        return text


def _mappings(node: YamlNode, line: int, column: int) -> list[YamlNode]:
    """What ``<<`` may name: a mapping, or a list of them."""
    named = node.value if isinstance(node.value, list) else [node]
    if not all(isinstance(each.value, dict) for each in named):
        raise YamlError("not valid YAML: << takes a mapping, or a list of mappings", line, column)
    return named


def _merge(node: YamlNode) -> None:
    """Keys that were merged in, behind a mapping's own and where it has none of that name."""
    for other in node.merged:
        for key, value in other.value.items():
            node.value.setdefault(key, value)


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise YamlError(f"not valid YAML: {_shown(text)} is not true or false")
    return text.lower() == "true"


def _integer(text: str) -> int:
    digits = text.replace("_", "").lower()
    sign, bare = (-1, digits[1:]) if digits.startswith("-") else (1, digits.removeprefix("+"))
    base = BASES.get(bare[:2], 10)
    try:
        return sign * int(bare[2:] if base != 10 else bare, base)
    except ValueError:
        raise YamlError(f"not valid YAML: {_shown(text)} is no whole number") from None


def _float(text: str) -> float:
    try:
        return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.replace("_", "").lower()))
    except ValueError:
        raise YamlError(f"not valid YAML: {_shown(text)} is no number") from None


def _place(text: str, at: int) -> tuple[int, int]:
    """Line and column, from 1, of a character."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _one_line(message: object) -> str:
    return _shown(" ".join(str(message).split()), 200)


def _shown(text: str, most: int = 60) -> str:
    """Somebody's text within a message: short, and with nothing that moves a terminal's cursor."""
    safe = "".join(c if c.isprintable() else _escaped(c) for c in text[:most])
    return safe + ("..." if len(text) > most else "")


def _escaped(text: str) -> str:
    return text.encode("unicode_escape", "surrogatepass").decode("ascii")
