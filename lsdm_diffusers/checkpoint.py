"""Where the checkpoint and the example maps that ship in the package are."""

from importlib.resources import files
from pathlib import Path


def small_checkpoint() -> str:
    """Path of the small checkpoint shipped in the package, for `LSDMGuidedPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    path = _package_folder() / "checkpoints" / "lung-ct-small"
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The shipped checkpoint is not in {path}; install lsdm_diffusers from its wheel or repository again."
        )
    return str(path)


def example_map(name: str = "lidc-idri-0001") -> str:
    """Path of a semantic map (PNG) shipped in the package.

    Args:
        name: of the map, without the suffix.

    Raises:
        FileNotFoundError: for a name that no map has.
    """
    folder = _package_folder() / "examples"
    path = folder / f"{name}.png"
    if not path.is_file():
        names = sorted(path.stem for path in folder.glob("*.png"))
        raise FileNotFoundError(f"`name` is {name!r}, but the example maps are {names}.")
    return str(path)


def _package_folder() -> Path:
    # a folder on disk, never a zip archive: diffusers loads from paths, and setup.cfg says `zip_safe = False`
    return Path(str(files(__package__)))
