"""The digest of the code that makes a shard.

Code is an input of a cache. Starting at a stage's function, every definition of the project that it
reaches (through names, also those imported inside functions) is digested from its syntax tree.
Comments, layout, docstrings, import statements, import aliases and the names of modules and files are
not part of the digest: moving a definition to another module, or renaming a module, changes nothing.
`schemas` is not part of it either, since it only checks tables (the values of settings are part of a
key), nor is the store.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

# The folder that holds `tasks`: the repository, or the installed package.
SOURCES = Path(__file__).resolve().parents[2]
PACKAGE = "cutline."
PACKAGES = ("tasks",)
# How shards are kept and looked up does not change what is in them.
STORE = (
    "cutline.tasks.engine",
    "cutline.tasks.runtime.processes",
    "cutline.tasks.runtime.tensorflow",
    "cutline.tasks.storage.workspace",
)
KNOWN_CODE = "code.json"  # in a workspace
# TensorFlow's AutoGraph parses as well, and does not take the lock.
PARSE_ATTEMPTS = 5
_parsing = Lock()


# What `code_of` found, by its arguments; half a second's work for all stages.
_known: dict[str, dict[str, str]] = {}


def code_of(function: str, *files: str) -> dict[str, str]:
    """Digest of each definition that `function` ("cutline.tasks.text.stage:make_tokens") reaches, by name.

    Where several definitions have one name, they are numbered in the order of their digests. `files` are
    other files that the function reads, relative to the folder that holds `tasks` (a template, for example).
    """
    key = " ".join((function, *files))
    if key not in _known:
        _known[key] = _find_code(function, files)
    return _known[key]


def _find_code(function: str, files: tuple[str, ...]) -> dict[str, str]:
    found: dict[tuple[str, str], str] = {}
    waiting = [tuple(function.split(":"))]
    while waiting:
        module, name = waiting.pop()
        if (module, name) in found or module.startswith(STORE):
            continue
        source = _Module.of(module)
        if name not in source.definitions:  # re-exported: follow the import
            waiting.extend([source.imported[name]] if name in source.imported else [])
            continue
        found[module, name] = source.digest(name)
        if source.loose:
            found[module, "code at import"] = source.loose
        waiting.extend(source.reached(name))
    named = [(name, digest) for (_, name), digest in found.items()]
    named += [(Path(file).name, _digest((SOURCES / file).read_text(encoding="utf-8"))) for file in files]
    code: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for name, digest in sorted(named):
        seen[name] += 1
        code[name if seen[name] == 1 else f"{name} ({seen[name]})"] = digest
    return code


def load_known_code(file: Path) -> bool:
    """Take over the digests that `save_known_code` of another process wrote, if the sources are the same."""
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        if saved["sources"] != _sources_digest():
            return False
        _known.update(saved["known"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # missing or damaged: the digests are computed again
    return True


def save_known_code(file: Path) -> None:
    """Write the digests that `code_of` has computed. It only saves time, so a failure is ignored."""
    text = json.dumps({"sources": _sources_digest(), "known": _known})
    with suppress(OSError):
        temporary = file.with_name(f"{file.name}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)


def _sources_digest() -> str:
    """Digest of every file that `code_of` may read."""
    digest = hashlib.blake2b(digest_size=16)
    for package in PACKAGES:
        for path in sorted((SOURCES / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                data = path.read_bytes()
                digest.update(f"{path.relative_to(SOURCES)}\0{len(data)}\0".encode())
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
        path = _path_of(name)
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
            definition = self.definitions[name]
            self._digests[name] = _digest(_dump(definition, self._imported_in(definition)))
        return self._digests[name]

    def _imported_in(self, definition: ast.stmt) -> dict[str, tuple[str, str]]:
        """What local names of a definition stand for, where they are imported from the project."""
        imported = dict(self.imported)
        for node in ast.walk(definition):
            if isinstance(node, ast.Import | ast.ImportFrom):
                imported |= _project_imports(node)
        return imported

    def reached(self, name: str) -> list[tuple[str, str]]:
        """(module, name) of each definition of the project that a definition names."""
        if name not in self._reached:
            self._reached[name] = self._find_reached(self.definitions[name])
        return self._reached[name]

    def _find_reached(self, definition: ast.stmt) -> list[tuple[str, str]]:
        imported = self._imported_in(definition)
        reached = []
        for node in ast.walk(definition):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                module, attribute = imported.get(node.value.id, ("", ""))
                if attribute == "":  # `from cutline.tasks import images`, then `images.decode`
                    reached += [(module, node.attr)] if module else []
            elif isinstance(node, ast.Name):
                if node.id in self.definitions:
                    reached.append((self.name, node.id))
                elif imported.get(node.id, ("", ""))[1]:
                    reached.append(imported[node.id])
        return reached


def _path_of(module: str) -> Path:
    """Where a module lies, without its ending."""
    return SOURCES / Path(*module.removeprefix(PACKAGE).split("."))


def _is_ours(module: str) -> bool:
    return module.removeprefix(PACKAGE).split(".")[0] in PACKAGES


def _parse(source: bytes) -> ast.Module:
    """`ast.parse`, safe while other threads of the process parse.

    CPython 3.11 counts the depth of a tree for all threads together, and raises a `SystemError` where
    one starts or ends during another's (https://github.com/python/cpython/issues/106905). The lock keeps
    our own threads apart.
    """
    with _parsing:
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
            if _is_ours(alias.name) and alias.asname:
                names[alias.asname] = (alias.name, "")
        elif statement.module and _is_ours(statement.module):
            submodule = _path_of(statement.module) / f"{alias.name}.py"
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


def _dump(node: object, imported: dict[str, tuple[str, str]] | None = None) -> str:
    """A syntax tree as text, without positions, docstrings, imports and kinds of quotes.

    A name that is `imported` from the project is written as the definition's own name, whatever its alias
    or the module that it is taken from.
    """
    imported = imported or {}
    match node:
        case ast.Expr(value=ast.Constant()) | ast.Import() | ast.ImportFrom():
            return ""
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if _is_module(imported.get(name)):
            return f"Name({attribute!r})"
        case ast.Name(id=name):
            return f"Name({imported.get(name, ('', ''))[1] or name!r})"
        case ast.AST():
            fields = (_dump(getattr(node, name, None), imported) for name in node._fields if name != "kind")
            return f"{type(node).__name__}({','.join(fields)})"
        case list():
            return f"[{','.join(filter(None, (_dump(item, imported) for item in node)))}]"
    return repr(node)


def _is_module(target: tuple[str, str] | None) -> bool:
    return target is not None and target[1] == ""


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
