"""The digest of the code that makes a shard.

Code is an input of a cache. From a stage's function on, every definition of the project that it
reaches (through names, also those imported inside functions) is digested from its syntax tree:
comments, layout and docstrings are left out. Left out too are `schemas`, which holds tables to a
form (settings are part of a key by their values), and the store.
"""

from __future__ import annotations

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("tasks",)
# How shards are kept and looked up says nothing about what is in them.
STORE = ("tasks.workspace", "tasks.processes", "tasks.shards", "tasks.code", "tasks.walk", "tasks.quiet")
# `ast.parse` fails about once in five thousand calls while four threads do nothing but parse.
PARSE_ATTEMPTS = 5


# What `code_of` found, by its arguments; half a second's work for all stages.
_known: dict[str, dict[str, str]] = {}


def code_of(function: str, *files: str) -> dict[str, str]:
    """Digest of each definition that `function` ("tasks.images:make_images") reaches, by name.

    `files` are further files that the function reads, relative to the repository (a template, say).
    """
    key = " ".join((function, *files))
    if key not in _known:
        _known[key] = _find_code(function, files)
    return _known[key]


def _find_code(function: str, files: tuple[str, ...]) -> dict[str, str]:
    found: dict[str, str] = {}
    waiting = [tuple(function.split(":"))]
    while waiting:
        module, name = waiting.pop()
        label = f"{module.replace('.', '/')}.py {name}"
        if label in found or module in STORE:
            continue
        source = _Module.of(module)
        if name not in source.definitions:  # re-exported: follow the import
            waiting.extend([source.imported[name]] if name in source.imported else [])
            continue
        found[label] = source.digest(name)
        if source.loose:
            found[f"{module.replace('.', '/')}.py (module)"] = source.loose
        waiting.extend(source.reached(name))
    for file in files:
        found[file] = _digest((REPOSITORY / file).read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def known_code() -> str:
    """What `code_of` has found so far, for `recall_code` of another process."""
    return json.dumps({"sources": _sources_digest(), "known": _known})


def recall_code(text: str) -> bool:
    """Take over what `known_code` told, if the sources are still the same."""
    try:
        told = json.loads(text)
        if told["sources"] != _sources_digest():
            return False
        _known.update(told["known"])
    except (ValueError, KeyError, TypeError):
        return False  # damaged: it is found again
    return True


def _sources_digest() -> str:
    """Digest of every file that `code_of` may read."""
    digest = hashlib.blake2b(digest_size=16)
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                data = path.read_bytes()
                digest.update(f"{path.relative_to(REPOSITORY)}\0{len(data)}\0".encode())
                digest.update(data)
    return digest.hexdigest()


def code_digest(code: dict[str, str]) -> str:
    """One digest for the definitions of `code_of`."""
    return _digest(json.dumps(code, sort_keys=True))


def changed_definitions(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names of the definitions that differ, are new or are gone."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


class _Module:
    """The definitions and imports of one source file."""

    def __init__(self, name: str) -> None:
        path = REPOSITORY / Path(*name.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = _parse(file.read_bytes())
        self.name = name
        self.definitions: dict[str, ast.stmt] = {}
        self.imported: dict[str, tuple[str, str]] = {}
        loose = []
        for statement in tree.body:
            names = _defined_names(statement)
            for defined in names:
                self.definitions[defined] = statement
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self.imported |= _project_imports(statement)
            elif not names and not _is_for_type_checking(statement) and not _is_docstring(statement):
                loose.append(_dump(statement))  # runs when the module is imported
        self.loose = _digest("\n".join(loose)) if loose else ""
        self._digests: dict[str, str] = {}
        self._reached: dict[str, list[tuple[str, str]]] = {}

    @staticmethod
    @cache
    def of(name: str) -> _Module:
        return _Module(name)

    def digest(self, name: str) -> str:
        """Digest of a definition's syntax tree."""
        if name not in self._digests:
            self._digests[name] = _digest(_dump(self.definitions[name]))
        return self._digests[name]

    def reached(self, name: str) -> list[tuple[str, str]]:
        """(module, name) of each definition of the project that a definition names."""
        if name not in self._reached:
            self._reached[name] = self._find_reached(self.definitions[name])
        return self._reached[name]

    def _find_reached(self, definition: ast.stmt) -> list[tuple[str, str]]:
        imported = dict(self.imported)
        for node in ast.walk(definition):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= _project_imports(node)
        reached = []
        for node in ast.walk(definition):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module, attribute = imported.get(node.value.id, ("", ""))
                if attribute == "":  # `from tasks import images`, then `images.decode`
                    reached += [(module, node.attr)] if module else []
            elif isinstance(node, ast.Name):
                if node.id in self.definitions:
                    reached.append((self.name, node.id))
                elif imported.get(node.id, ("", ""))[1]:
                    reached.append(imported[node.id])
        return reached


def _parse(source: bytes) -> ast.Module:
    """`ast.parse`, also while other threads of the process parse.

    CPython 3.11 counts the depth of a tree for all threads together, and raises a `SystemError` where
    one began or ended amid another's (https://github.com/python/cpython/issues/106905).
    """
    for _ in range(PARSE_ATTEMPTS - 1):
        try:
            return ast.parse(source)
        except SystemError:
            continue
    return ast.parse(source)


def _project_imports(statement: ast.Import | ast.ImportFrom) -> dict[str, tuple[str, str]]:
    """Local name -> (module, definition); the definition is empty where the name is a module."""
    names: dict[str, tuple[str, str]] = {}
    for alias in statement.names:
        if isinstance(statement, ast.Import):
            if alias.name.split(".")[0] in PACKAGES and alias.asname:
                names[alias.asname] = (alias.name, "")
        elif statement.module and statement.module.split(".")[0] in PACKAGES:
            submodule = REPOSITORY / Path(*statement.module.split(".")) / f"{alias.name}.py"
            target = (
                (f"{statement.module}.{alias.name}", "")
                if submodule.is_file()
                else (statement.module, alias.name)
            )
            names[alias.asname or alias.name] = target
    return names


def _defined_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Assign():
            return [
                node.id
                for target in statement.targets
                for node in ast.walk(target)
                if isinstance(node, ast.Name)
            ]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
    return []


def _is_for_type_checking(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _dump(node: object) -> str:
    """A syntax tree as text, without positions, docstrings and kinds of quotes."""
    if isinstance(node, ast.AST):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return ""
        fields = (_dump(getattr(node, name, None)) for name in node._fields if name != "kind")
        return f"{type(node).__name__}({','.join(fields)})"
    if isinstance(node, list):
        return f"[{','.join(filter(None, map(_dump, node)))}]"
    return repr(node)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
