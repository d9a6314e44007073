"""Show the doctests of docstrings as code: an extension of griffe, which reads the docstrings for the API pages.

griffe takes doctests for code in a section `Examples:` only. Docstrings here give them bare or under `Example:`.
"""

from textwrap import indent
from typing import Any

import griffe


def with_examples_section(docstring: str) -> str:
    """The docstring with `Examples:` above each block that starts with >>>."""
    blocks = docstring.replace("\nExample:\n", "\nExamples:\n").split("\n\n")
    return "\n\n".join(f"Examples:\n{indent(block, '    ')}" if block[:3] == ">>>" else block for block in blocks)


class DoctestExamples(griffe.Extension):
    """Rewrite each docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """griffe calls this for each module, class, function and attribute that it has read."""
        if obj.docstring is not None:
            obj.docstring.value = with_examples_section(obj.docstring.value)
