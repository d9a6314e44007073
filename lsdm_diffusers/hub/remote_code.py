"""The edition of a pipeline that loads without this package: its code travels in the repository, for `trust_remote_code=True`.

diffusers fetches one file of code for the pipeline and one for each component, and no other, so each of them must hold
everything of the package that its class needs.
"""

import ast
import importlib
import json
from pathlib import Path

PACKAGE = __package__.partition(".")[0]


def _own_imports(tree: ast.Module, module: str) -> list[tuple[ast.ImportFrom, str]]:
    """The statements of a module that import from this package, each with the full name of what it imports from."""
    found = []
    for node in ast.walk(tree):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [getattr(node, "module", None) or ""]
        )
        if isinstance(node, (ast.Import, ast.ImportFrom)) and not getattr(node, "level", 0):
            if any(name.split(".")[0] == PACKAGE for name in names):
                raise ValueError(
                    f"{module} imports {PACKAGE} by its name in line {node.lineno}, but one file needs relative imports."
                )
        elif isinstance(node, ast.ImportFrom):
            if node not in tree.body or node.module is None or any(alias.asname for alias in node.names):
                raise ValueError(
                    f"{module} has an import in line {node.lineno} that cannot be cut out: `from .module import name` is needed."
                )
            found.append((node, ".".join([*module.split(".")[: -node.level], node.module])))
    return found


def _names_defined(tree: ast.Module, module: str) -> dict[str, str]:
    """The names that the top level of a module binds, each with what it is bound to."""
    names = {}
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: f"import {alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names[node.name] = module
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name.id: module for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return names


def self_contained_source(module: str) -> str:
    """The source of a module of this package with those of the package's modules that it imports before it, in one file.

    Args:
        module: its full name, such as "lsdm_diffusers.pipeline_lsdm".

    Raises:
        ValueError: where two of the modules mean different things by one name, or import from each other in a form that cannot be cut out.
    """
    sources, bound = {}, {}

    def add(name: str) -> None:
        if name in sources:
            return
        text = Path(importlib.import_module(name).__file__).read_text(encoding="utf-8")
        tree, lines = ast.parse(text), text.splitlines()
        imports = _own_imports(tree, name)
        for _, imported in imports:
            add(imported)
        for key, value in _names_defined(tree, name).items():
            if bound.setdefault(key, value) != value:
                raise ValueError(
                    f"{name} and {bound[key]} mean different things by `{key}`, so they do not fit into one file."
                )
        for node, _ in imports:
            lines[node.lineno - 1 : node.end_lineno] = [None] * (node.end_lineno - node.lineno + 1)
        sources[name] = "\n".join(line for line in lines if line is not None).strip()

    add(module)
    version = importlib.import_module(PACKAGE).__version__
    heading = f"# {module} of {PACKAGE} {version} and what it imports from there, in one file. Licence: Apache-2.0."
    return "\n\n\n".join([heading, *(f"# {name}\n\n{text}" for name, text in sources.items())]) + "\n"


def remote_code_files(model_index: dict, pipeline_class: type) -> dict[str, bytes]:
    """What differs in the edition with code: {path in the repository: content}.

    Args:
        model_index: content of the pipeline's `model_index.json`.
        pipeline_class: the class it names.
    """
    own = {
        name: value
        for name, value in model_index.items()
        if isinstance(value, list) and str(value[0]).split(".")[0] == PACKAGE
    }
    pipeline_file = pipeline_class.__module__.rsplit(".", 1)[-1]
    source = self_contained_source(pipeline_class.__module__)
    source += "\n\n# a component's class is that of its own file, another object than the one of the same name above: diffusers would warn\n"
    source += f"{pipeline_class.__name__}.__init__.__annotations__.update(dict.fromkeys({list(own)}, ModelMixin))\n"
    files = {f"{pipeline_file}.py": source.encode()}
    index = {**model_index, "_class_name": [pipeline_file, pipeline_class.__name__]}
    for component, (module, class_name) in own.items():
        file = module.rsplit(".", 1)[-1]
        files[f"{component}/{file}.py"] = self_contained_source(module).encode()
        index[component] = [file, class_name]
    files["model_index.json"] = (json.dumps(index, indent=2, sort_keys=True) + "\n").encode()
    return files
