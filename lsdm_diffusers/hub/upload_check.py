"""The checks of files and cards before a model, a dataset or a Space goes out to the Hub."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from huggingface_hub import DatasetCard, ModelCard, RepoCard, SpaceCard
from safetensors import SafetensorError, safe_open

Kind = Literal["model", "dataset", "space"]
Content = Path | bytes  # a file to be pushed: its path, or its content

ALLOWED: dict[Kind, tuple[str, ...]] = {
    "model": (".json", ".safetensors", ".md", ".png", ".jpg"),
    "dataset": (".parquet", ".json", ".csv", ".md", ".png"),
    "space": (".py", ".txt", ".md", ".png", ".jpg", ".svg", ".css", ".js", ".html", ".json"),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
TABLES = (".parquet", ".arrow", ".csv", ".jsonl")
SCANS = (".dcm", ".dicom", ".npy", ".npz", ".nii", ".gz", ".mha", ".nrrd", ".h5")
ARCHIVES = (".zip", ".tar")
DATA = TABLES + SCANS + ARCHIVES
TEXT = (".json", ".md", ".csv", ".txt", ".py", ".css", ".js", ".html", ".svg")
FIRST_BYTES = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".parquet": b"PAR1"}

ABSOLUTE_PATH = re.compile(
    r"""
    (?<![\w./<\\\])}!*-])      # not the end of a web address, of a relative path, of markup or of a formula
    (
        /(?:[\w.+@-]+/)+[\w.+@-]+    # /home/somebody/vae
        | ~/[\w.]+                   # ~/vae
        | [A-Za-z]:[\\/]{1,2}\w[^\s"']*    # C:\vae, also as JSON writes it
    )
    | (file:///?\S+)
    | (?<=")(/[\w.+@-]+)(?=")  # "/vae", a whole string of JSON
    """,
    re.VERBOSE,
)
SECRET = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{20,}              # Hugging Face
    | \bgh[pousr]_[A-Za-z0-9]{30,}     # GitHub
    | \bgithub_pat_\w{30,}
    | \bAKIA[0-9A-Z]{16}\b             # Amazon
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----
    """,
    re.VERBOSE,
)
UNFILLED = re.compile(
    r"""
    TO\ FILL\ IN[^.\n]*
    | \{\{[^}\n]*\}?\}?    # {{ a field of a template }}
    | \{%[^%\n]*%?\}?      # {% a statement of a template %}
    | \[More\ Information\ Needed\]
    | \bTODO\b | \bFIXME\b | \bTBD\b
    """,
    re.VERBOSE,
)

CARDS: dict[Kind, type[RepoCard]] = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}
REQUIRED_METADATA: dict[Kind, tuple[str, ...]] = {
    "model": ("license", "library_name", "pipeline_tag", "tags"),
    "dataset": ("license", "pretty_name", "tags"),
    "space": ("title", "sdk", "sdk_version", "python_version", "app_file", "models", "license"),
}


def read_content(content: Content, limit: int = -1) -> bytes:
    """Read a file to be pushed.

    Args:
        content: its path, or the content itself.
        limit: number of bytes to read from its start; -1 for all.
    """
    if isinstance(content, bytes):
        return content[:limit] if limit >= 0 else content
    with content.open("rb") as file:
        return file.read(limit)


def check_files(files: Mapping[str, Content], kind: Kind) -> None:
    """Refuse files that should not go out: pickles, scans, files of another type than their name says, secrets, paths.

    Args:
        files: {path in the repository: path here, or content}.
        kind: what the repository holds.

    Raises:
        ValueError: for the first such file.
    """
    for name, content in sorted(files.items()):
        _check_name(name, kind)
        text = _checked_text(name, content)
        if SECRET.search(text):
            raise ValueError(f"{name} contains what looks like an access token or a private key.")
        if path := ABSOLUTE_PATH.search(text):
            raise ValueError(
                f"{name} contains the absolute path {path[0]!r}, which exists on one machine only: remove it."
            )


def _check_name(name: str, kind: Kind) -> None:
    """Refuse a file by its name."""
    suffix = Path(name).suffix.lower()
    if suffix in PICKLES:
        raise ValueError(f"{name} is a pickle, which can run code when it is loaded; only safetensors go out.")
    if suffix in ALLOWED[kind] or Path(name).name == "LICENSE":
        return
    reason = f"holds data, which have no place in a {kind}" if suffix in DATA else f"is no file of a {kind}"
    raise ValueError(f"{name} {reason}: only {', '.join(ALLOWED[kind])} and LICENSE go out.")


def _checked_text(name: str, content: Content) -> str:
    """Check that a file is what its name says; returns its text, the metadata of weights, or "" for other files."""
    suffix = Path(name).suffix.lower()
    if suffix in FIRST_BYTES and not read_content(content, 4).startswith(FIRST_BYTES[suffix]):
        raise ValueError(f"{name} is no {suffix[1:].upper()} file by its first bytes.")
    if suffix == ".safetensors":
        try:
            with safe_open(content, framework="np") as weights:
                return json.dumps(weights.metadata() or {})
        except SafetensorError:
            raise ValueError(f"{name} is no safetensors file, whatever its name.") from None
    if suffix not in TEXT:
        return ""
    try:
        text = read_content(content).decode()
        if suffix == ".json":
            json.loads(text)
    except ValueError:
        raise ValueError(f"{name} is no {'JSON' if suffix == '.json' else 'UTF-8 text'}.") from None
    return text


def check_card(card: str, kind: Kind) -> None:
    """Refuse a card (README.md) that is not filled in, or whose metadata lacks what the Hub needs.

    Args:
        card: text of the card, with its metadata.
        kind: what the repository holds.

    Raises:
        ValueError: for the first thing that is missing or wrong.
    """
    if unfilled := UNFILLED.search(card):
        raise ValueError(f"README.md has the unfilled field {unfilled[0].strip()!r}.")
    try:
        data = CARDS[kind](card, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML's errors and huggingface_hub's own have no common base
        raise ValueError(f"README.md has metadata that cannot be read: {' '.join(str(error).split())}") from None
    missing = [field for field in REQUIRED_METADATA[kind] if not data.get(field)]
    if missing:
        raise ValueError(f"README.md has no `{missing[0]}` in its metadata, which a {kind} needs.")
    if data["license"] == "other" and not data.get("license_name"):
        raise ValueError("README.md has `license: other` without a `license_name` that says which licence it is.")
    if kind == "model" and data["library_name"] != "diffusers":
        raise ValueError(f"README.md has `library_name: {data['library_name']}`, but `diffusers` is needed.")
    if kind == "space" and data["sdk"] != "gradio":
        raise ValueError(f"README.md has `sdk: {data['sdk']}`, but `gradio` is needed.")
