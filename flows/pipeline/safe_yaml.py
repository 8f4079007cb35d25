"""YAML of settings: the scalars of YAML 1.2, merges, no key twice, and a bound on what aliases expand to.

PyYAML reads YAML 1.1, in which 0224 is 148, 12:30 is 750 and `no` is false. The core schema of YAML 1.2
(https://yaml.org/spec/1.2.2/#103-core-schema) has none of these.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

MAX_BYTES = 64 * 2**10  # a file of all settings has some 4 kB
MAX_VALUES = 2_000  # names and values together, an alias counted as what it stands for

_SCALARS = {
    "null": ("~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": ("true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": ("[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": ("<<", ["<"]),
}
_BASES = {"0o": 8, "0x": 16}


class _Loader(yaml.SafeLoader):
    """Builds nothing but mappings, lists, texts, numbers, truth values and nothing."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own; below those of YAML 1.2)
    values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.values += 1
        if self.values > MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, _too_many(), self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                problem = "expected a name before the colon, found a list or a mapping"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            if (key.tag, key.value) in seen:
                problem = f"'{key.value[:80]}' comes twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def construct_int(self, node: yaml.ScalarNode) -> int:
        text = self.construct_scalar(node)
        return int(text, _BASES.get(text[:2], 10))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"({_pattern})\\Z"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)


def load_yaml(text: str) -> Any:
    """The value that `text` describes.

    Raises yaml.YAMLError, ValueError or RecursionError where it is no YAML, uses a tag, has a key twice,
    is longer than MAX_BYTES or stands for more than MAX_VALUES values.

    >>> load_yaml("{a: 0224, b: 12:30, c: no, d: 0o17, e: {<<: {f: 1}, g: 2}}")
    {'a': 224, 'b': '12:30', 'c': 'no', 'd': 15, 'e': {'f': 1, 'g': 2}}
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"expected at most {MAX_BYTES:,} characters of settings, found {len(text):,}")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded(node, {}, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _expanded(node: yaml.Node, known: dict[yaml.Node, int], within: set[yaml.Node]) -> int:
    """How many values a node stands for, what its aliases stand for included. Raises as `load_yaml`."""
    if node in known:
        return known[node]
    if node in within:
        problem = "expected values that end, found one that holds itself"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    within.add(node)
    count = 1 + sum(_expanded(child, known, within) for child in children)
    within.discard(node)
    if count > MAX_VALUES:
        raise yaml.constructor.ConstructorError(None, None, _too_many(), node.start_mark)
    known[node] = count
    return count


def _too_many() -> str:
    return f"expected at most {MAX_VALUES:,} names and values, an alias counted as what it stands for"
