"""The code of a pipeline for users without this package: it travels in the repository, for `trust_remote_code=True`.

diffusers fetches one code file for the pipeline and one for each component, and no other file. So each of them must
hold everything of this package that its class needs.
"""

import ast
import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from ..version import __version__

PACKAGE = (__package__ or "lsdm_diffusers").partition(".")[0]
COMPONENT_ANNOTATIONS = """

# Each component's class comes from its own file and is not the class of that name above. diffusers would warn of that.
{pipeline}.__init__.__annotations__.update(dict.fromkeys({components}, ModelMixin))
"""


def _imports_package(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an absolute import names this package."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        names = [node.module or ""] if node.level == 0 else []
    return any(name.split(".")[0] == PACKAGE for name in names)


def _relative_imports(tree: ast.Module, module: str) -> list[tuple[ast.ImportFrom, str]]:
    """Find the statements of a module that import from this package.

    Args:
        tree: the parsed module.
        module: its full name.

    Returns:
        Each statement with the full name of the module that it imports from.

    Raises:
        ValueError: for an import that cannot be cut out of the source.
    """
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if _imports_package(node):
            raise ValueError(
                f"{module} imports {PACKAGE} by its name in line {node.lineno}, "
                "but only relative imports can be cut out."
            )
        if isinstance(node, ast.Import):
            continue
        if node.module == "__future__":
            raise ValueError(
                f"{module} imports from __future__ in line {node.lineno}, which works at the top of a file only."
            )
        if node.level == 0:
            continue
        renamed = any(alias.asname or alias.name == "*" for alias in node.names)
        if node.module is None or renamed or node not in tree.body:
            raise ValueError(
                f"{module} has an import in line {node.lineno} that cannot be cut out; `from .module import name` "
                "at the top level is needed, neither in a function nor under `if TYPE_CHECKING:`."
            )
        package = module.split(".")[: -node.level]
        found.append((node, ".".join([*package, node.module])))
    return found


def _names_defined(tree: ast.Module, module: str) -> dict[str, str]:
    """Map each name that the top level of a module binds to what it is bound to."""
    meanings: dict[str, str] = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            meanings |= {alias.asname or alias.name: f"import {alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            meanings |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            meanings[node.name] = module
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                meanings |= {name.id: module for name in ast.walk(target) if isinstance(name, ast.Name)}
    return meanings


def _without_lines(text: str, statements: list[ast.ImportFrom]) -> str:
    """Remove the lines of these statements from a source."""
    removed: set[int] = set()
    for node in statements:
        removed |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    kept = [line for number, line in enumerate(text.splitlines(), start=1) if number not in removed]
    return "\n".join(kept).strip()


def self_contained_source(module: str) -> str:
    """Write a module of this package, and the package's modules that it imports, into one source.

    Args:
        module: full name of the module, such as "lsdm_diffusers.pipeline_lsdm".

    Returns:
        The source of one file that needs other packages only. An imported module stands before those that import it.

    Raises:
        ValueError: if two of the modules mean different things by one name, or if an import cannot be cut out.
    """
    sources: dict[str, str] = {}
    meanings: dict[str, str] = {}

    def add(name: str) -> None:
        if name in sources:
            return
        text = inspect.getsource(importlib.import_module(name))
        tree = ast.parse(text)
        imports = _relative_imports(tree, name)
        for _, imported in imports:
            add(imported)
        for key, meaning in _names_defined(tree, name).items():
            if meanings.setdefault(key, meaning) != meaning:
                raise ValueError(
                    f"{name} and {meanings[key]} mean different things by `{key}`, so they do not fit into one file."
                )
        sources[name] = _without_lines(text, [node for node, _ in imports])

    add(module)
    parts = [f"# {module} and what it imports, in one file: from {PACKAGE} {__version__}. Licence: Apache-2.0."]
    parts += [f"# {name}\n\n{source}" for name, source in sources.items()]
    return "\n\n\n".join(parts) + "\n"


def remote_code_files(model_index: Mapping[str, Any], pipeline_class: type) -> dict[str, bytes]:
    """Make the files that the revision with code has beside the weights.

    Args:
        model_index: content of the pipeline's `model_index.json`.
        pipeline_class: the class that it names.

    Returns:
        {path in the repository: content}: the code files, and a `model_index.json` that names them.

    Raises:
        ValueError: if a class does not fit into one file.
        ImportError: if the index names a module that this version of the package does not have.
    """
    components = {
        name: value
        for name, value in model_index.items()
        if isinstance(value, list) and str(value[0]).split(".")[0] == PACKAGE
    }
    pipeline_file = pipeline_class.__module__.rsplit(".", 1)[-1]
    source = self_contained_source(pipeline_class.__module__)
    source += COMPONENT_ANNOTATIONS.format(pipeline=pipeline_class.__name__, components=list(components))
    files = {f"{pipeline_file}.py": source.encode()}
    index = {**model_index, "_class_name": [pipeline_file, pipeline_class.__name__]}
    for component, (module, class_name) in components.items():
        component_file = module.rsplit(".", 1)[-1]
        files[f"{component}/{component_file}.py"] = self_contained_source(module).encode()
        index[component] = [component_file, class_name]
    files["model_index.json"] = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return files
