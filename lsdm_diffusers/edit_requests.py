"""What `lsdm-edit` is asked for: edits on the command line, in a JSON or in a CSV file, checked before any work."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .nodule_features import NODULE_FEATURES, feature_target

INSERT, CHANGE, REMOVE = ACTIONS = ("insert", "change", "remove")
SHAPES = ("smooth", "lobulated", "spiculated")
PLACE = ("z", "y", "x")
COLUMNS = ("action", *PLACE, "diameter_mm", "nodule", "shape", "seed", *NODULE_FEATURES)


@dataclass(frozen=True)
class EditRequest:
    """One edit of a series.

    Args:
        action: "insert", "change" or "remove".
        place: z, y and x of a nodule to insert.
        diameter_mm: of a nodule to insert.
        nodule: number in the mask of a nodule to change or remove.
        features: {feature: value} of a nodule to insert or change.
        shape: of a nodule to insert.
        seed: of its outline and noise.
    """

    action: str
    place: tuple[float, float, float] | None = None
    diameter_mm: float | None = None
    nodule: int | None = None
    features: dict[str, Any] = field(default_factory=dict)
    shape: str = "smooth"
    seed: int = 0

    def check(self) -> None:
        """Raise ValueError for what is missing, superfluous or out of range."""
        if self.action not in ACTIONS:
            raise ValueError(f"action is {self.action!r}, but {', '.join(ACTIONS)} are known.")
        if self.action == INSERT:
            if self.place is None or self.diameter_mm is None:
                raise ValueError("an inserted nodule needs z, y, x and diameter_mm.")
            if not all(map(math.isfinite, (*self.place, self.diameter_mm))):
                raise ValueError(f"z, y, x and diameter_mm are {(*self.place, self.diameter_mm)}, but must be finite.")
            if self.nodule is not None:
                raise ValueError("an inserted nodule has no number yet; leave nodule out.")
        elif self.nodule is None or self.nodule < 1:
            raise ValueError(f"to {self.action} a nodule, its number in the mask is needed, from 1.")
        elif self.place is not None or self.diameter_mm is not None:
            raise ValueError(f"to {self.action} a nodule takes its number, and no place or diameter.")
        if self.action == REMOVE and self.features:
            raise ValueError("a removed nodule has no features.")
        if self.action == CHANGE and not self.features:
            raise ValueError("to change a nodule, at least one feature is needed.")
        if self.shape not in SHAPES:
            raise ValueError(f"shape is {self.shape!r}, but {', '.join(SHAPES)} are known.")
        for name, value in self.features.items():
            if name not in NODULE_FEATURES:
                raise ValueError(f"{name!r} is no feature of nodules; {', '.join(NODULE_FEATURES)} are.")
            feature_target(name, value)

    def words(self) -> str:
        """The edit in words, without its number."""
        asked = "".join(f", {name} {_plain(value)}" for name, value in self.features.items())
        if self.action == INSERT:
            outline = "" if self.shape == "smooth" else f", {self.shape}"
            return f"inserted, {self.diameter_mm:g} mm{outline}{asked}"
        return "removed" if self.action == REMOVE else f"changed{asked}"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is {value!r}, but a number is needed.") from None


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if number != math.floor(number):
        raise ValueError(f"{name} is {value!r}, but a whole number is needed.")
    return int(number)


def request_from_mapping(entry: Mapping[str, Any]) -> EditRequest:
    """An edit from the columns `COLUMNS`; empty and missing ones are as their defaults.

    Raises:
        ValueError: for unknown columns and bad values.
    """
    given = {name: value for name, value in entry.items() if value not in (None, "")}
    unknown = sorted(set(map(str, given)) - set(COLUMNS))
    if unknown:
        raise ValueError(f"{unknown[0]!r} is unknown; {', '.join(COLUMNS)} are known.")
    features: dict[str, Any] = {}
    for name in NODULE_FEATURES:
        if name in given:
            try:
                features[name] = float(given[name])
            except (TypeError, ValueError):
                features[name] = given[name]
    places = [name for name in PLACE if name in given]
    if places and len(places) < len(PLACE):
        raise ValueError("z, y and x are needed together.")
    place = tuple(_number(name, given[name]) for name in PLACE) if places else None
    request = EditRequest(
        action=str(given.get("action", INSERT)),
        place=None if place is None else (place[0], place[1], place[2]),
        diameter_mm=_number("diameter_mm", given["diameter_mm"]) if "diameter_mm" in given else None,
        nodule=_whole("nodule", given["nodule"]) if "nodule" in given else None,
        features=features,
        shape=str(given.get("shape", "smooth")),
        seed=_whole("seed", given.get("seed", 0)),
    )
    request.check()
    return request


def read_requests(path: str | Path) -> list[EditRequest]:
    """Read edits from a JSON file (a list of objects) or a CSV file (a row each) with the names of `COLUMNS`.

    Raises:
        ValueError: for a file that is absent or broken, has no edits, or a bad one, which is named by its number.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`--edits` is {path}, but there is no such file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            entries = json.loads(text)
        else:
            entries = list(csv.DictReader(text.splitlines()))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"`--edits` is {path}, which is neither JSON nor CSV: {error}.") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"`--edits` is {path}, but a list of at least one edit is needed.")
    requests = []
    for number, entry in enumerate(entries, start=1):
        if None in entry:
            raise ValueError(f"edit {number} of {path.name}: more values than columns.")
        try:
            requests.append(request_from_mapping(entry))
        except ValueError as error:
            raise ValueError(f"edit {number} of {path.name}: {error}") from None
    return requests


def requests_of_arguments(
    insert: Sequence[Sequence[float]] | None,
    change: Sequence[int] | None,
    remove: Sequence[int] | None,
    diameter_mm: float | None,
    shape: str,
    features: Mapping[str, Any],
    seed: int,
) -> list[EditRequest]:
    """The edits of a command line: removals first, then changes, then new nodules, which all get the same features.

    Raises:
        ValueError: for bad values.
    """
    requests = [EditRequest(REMOVE, nodule=number, seed=seed) for number in remove or ()]
    requests += [EditRequest(CHANGE, nodule=number, features=dict(features), seed=seed) for number in change or ()]
    for count, (z, y, x) in enumerate(insert or ()):
        requests.append(EditRequest(INSERT, (z, y, x), diameter_mm, None, dict(features), shape, seed + count))
    for request in requests:
        request.check()
    return requests
