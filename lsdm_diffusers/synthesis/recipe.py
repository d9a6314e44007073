"""The recipe of a set: how many slices, which nodules are drawn into the maps, and how slices are sampled."""

import hashlib
import importlib.resources
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..nodule_features import NODULE_FEATURES
from ..sampling_defaults import GRAIN, NUM_STEPS

LIDC = "lidc"
TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Recipe:
    """How a set is made. Every field has a default, so a file states only what differs.

    Args:
        num_slices: rows of the set.
        rows_per_shard: of a parquet file; a file is the unit of work.
        seed: of everything that is drawn.
        nodules_per_slice: {number of new nodules: share of the slices}.
        keep_nodules: whether nodules that the maps have stay; otherwise lung takes their place.
        diameter_mm: "lidc" draws sizes and ratings together, as nodules of LIDC-IDRI have them; [low, high] draws the
            diameter evenly, and ratings from nodules of LIDC-IDRI whatever their size.
        malignant: share of new nodules that are malignant (label 7); the others are benign (label 5). None draws
            malignancy as LIDC-IDRI has it, indeterminate ones (label 6) among them.
        guided_features: features of new nodules that guide; the others stand in the columns alone. Lobulation and
            spiculation guide where the nodule is large enough to show its outline.
        guidance_method: as in the pipeline; None takes what the checkpoint recommends.
        guidance_scale: as in the pipeline; None takes what the checkpoint recommends.
        unguided: share of the slices that are sampled without guidance, to compare with.
        num_inference_steps: denoising steps.
        grain: CT noise; [low, high] draws its level for each slice.
        validation: share of the shards that are of split validation, whose maps are of patients of their own.
    """

    num_slices: int = 100
    rows_per_shard: int = 16
    seed: int = 0
    nodules_per_slice: Mapping[int, float] | None = None
    keep_nodules: bool = False
    diameter_mm: str | tuple[float, float] = LIDC
    malignant: float | None = 0.5
    guided_features: tuple[str, ...] = ("malignancy", "texture", "lobulation", "spiculation")
    guidance_method: Any = None
    guidance_scale: Any = None
    unguided: float = 0.0
    num_inference_steps: int = NUM_STEPS
    grain: tuple[float, float] = (GRAIN, GRAIN)
    validation: float = 0.0

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_slices / self.rows_per_shard)

    def split_of(self, shard: int) -> str:
        """The split of a shard; the last ones are of split validation, at least one if any."""
        if self.validation == 0:
            return TRAIN
        held_out = max(1, round(self.validation * self.num_shards))
        return VALIDATION if shard >= self.num_shards - held_out else TRAIN

    def rows_of(self, shard: int) -> range:
        """The rows of a shard."""
        first = shard * self.rows_per_shard
        return range(first, min(first + self.rows_per_shard, self.num_slices))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def _whole(name: str, value: Any, lowest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"`{name}` is {value!r}, but a whole number of at least {lowest} is needed.")
    return value


def _share(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"`{name}` is {value!r}, but a number from 0 to 1 is needed.")
    return float(value)


def _limits(name: str, value: Any, low: float, high: float) -> tuple[float, float]:
    pair = [value, value] if isinstance(value, (int, float)) else value
    is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2
    if not is_pair or not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in pair):
        raise ValueError(f"`{name}` is {value!r}, but a number or a pair [low, high] is needed.")
    if not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"`{name}` is {value!r}, but low <= high within {low:g}..{high:g} is needed.")
    return float(pair[0]), float(pair[1])


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """A checked recipe from the values that differ from the defaults.

    Raises:
        ValueError: for an unknown name or a value out of range, which is named.
    """
    names = [field.name for field in fields(Recipe)]
    unknown = sorted(set(map(str, values)) - set(names))
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no part of a recipe; {', '.join(names)} are.")
    given = dict(values)
    for name, lowest in (("num_slices", 1), ("rows_per_shard", 1), ("seed", 0), ("num_inference_steps", 1)):
        if name in given:
            given[name] = _whole(name, given[name], lowest)
    for name in ("malignant", "unguided", "validation"):
        if given.get(name) is not None:
            given[name] = _share(name, given[name])
    if given.get("diameter_mm", LIDC) != LIDC:
        given["diameter_mm"] = _limits("diameter_mm", given["diameter_mm"], 3, 60)
    if "grain" in given:
        given["grain"] = _limits("grain", given["grain"], 0, 4)
    if "keep_nodules" in given and not isinstance(given["keep_nodules"], bool):
        raise ValueError(f"`keep_nodules` is {given['keep_nodules']!r}, but true or false is needed.")
    counts = given.get("nodules_per_slice") or {1: 1.0}
    if not isinstance(counts, Mapping) or not counts:
        raise ValueError(f"`nodules_per_slice` is {counts!r}, but {{number: share}} is needed.")
    shares = {
        _whole("nodules_per_slice", int(key) if str(key).isdigit() else key, 0): _share("nodules_per_slice", share)
        for key, share in counts.items()
    }
    if not math.isclose(sum(shares.values()), 1, abs_tol=1e-6):
        raise ValueError(f"`nodules_per_slice` has shares that sum to {sum(shares.values()):g}, but 1 is needed.")
    given["nodules_per_slice"] = shares
    guided = given.get("guided_features", Recipe.guided_features)
    if not isinstance(guided, (list, tuple)) or not set(guided) <= set(NODULE_FEATURES):
        raise ValueError(f"`guided_features` is {guided!r}, but a list of {', '.join(NODULE_FEATURES)} is needed.")
    given["guided_features"] = tuple(guided)
    recipe = Recipe(**given)
    if recipe.validation and recipe.num_shards < 2:
        raise ValueError(
            f"`validation` is {recipe.validation:g}, but {recipe.num_slices} slices make one shard of "
            f"{recipe.rows_per_shard}; two are needed."
        )
    return recipe


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The values of a YAML file, not yet checked.

    Raises:
        ValueError: for a file that is absent, or is no YAML of names and values.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"`--recipe` is {path}, but there is no such file.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"`--recipe` is {path}, which is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"`--recipe` is {path}, but names and values are needed.")
    return values


def row_generator(seed: int, row: int, purpose: str) -> np.random.Generator:
    """The random numbers of a row, which depend on nothing else."""
    digest = hashlib.sha256(json.dumps([seed, row, purpose]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


@lru_cache(maxsize=1)
def lidc_nodules() -> dict[str, np.ndarray]:
    """Diameter in mm and the readers' mean ratings of nodules of LIDC-IDRI's training patients (CC BY 3.0)."""
    text = importlib.resources.files(__package__).joinpath("lidc_nodules.csv").read_text()
    names, *rows = [line.split(",") for line in text.splitlines()]
    columns = np.array(rows, dtype=np.float64).T
    return dict(zip(names, columns, strict=True))
