"""What the board and the viewer share: calls from the browser to the server, and the files that run in the browser."""

import functools
import importlib.resources
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

Request = Mapping[str, Any]  # JSON from a browser, which may send anything
Answer = dict[str, Any]

logger = logging.getLogger(__name__)


def static_text(*names: str) -> str:
    """The text of files in `static/`, one after the other."""
    folder = importlib.resources.files(__package__).joinpath("static")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def answers_errors(function: Callable[[Request], Answer]) -> Callable[[Any], Answer]:
    """Let a function that the browser calls answer {"error": sentence} for a ValueError.

    Any other error is a fault of the server. It is logged, and the browser learns no more than that it happened.
    """

    @functools.wraps(function)
    def answer(request: Any) -> Answer:
        try:
            return function(request if isinstance(request, dict) else {})
        except ValueError as error:
            return {"error": str(error)}
        except Exception:
            logger.exception("%s failed", function.__name__)
            return {"error": "This did not work; the server's log has the reason."}

    return answer


def number_entry(request: Request, name: str) -> float:
    """The entry `name` of a request.

    Raises:
        ValueError: if it is no finite number.
    """
    value = request.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"`{name}` is {value!r}, but a number is needed.")
    return float(value)
