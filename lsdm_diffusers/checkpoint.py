"""Where the checkpoint and example maps that ship in the package are."""

from pathlib import Path


def small_checkpoint() -> str:
    """Path of the small checkpoint shipped in the package, for `LSDMGuidedPipeline.from_pretrained`.

    Raises:
        FileNotFoundError: if the installation lacks it.
    """
    path = Path(__file__).parent / "checkpoints" / "lung-ct-small"
    if not (path / "model_index.json").is_file():
        raise FileNotFoundError(
            f"The shipped checkpoint is not in {path}; install lsdm_diffusers from its wheel or repository again."
        )
    return str(path)


def example_map(name: str = "lidc-idri-0001") -> str:
    """Path of a semantic map (PNG) shipped in the package."""
    folder = Path(__file__).parent / "examples"
    path = folder / f"{name}.png"
    if not path.is_file():
        raise FileNotFoundError(
            f"`name` is {name!r}, but the example maps are {sorted(p.stem for p in folder.glob('*.png'))}."
        )
    return str(path)
