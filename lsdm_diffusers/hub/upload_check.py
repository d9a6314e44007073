"""What may go out to the Hub: the checks of files and cards before a model, a dataset or a Space is pushed."""

import json
import re
from pathlib import Path

from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from safetensors import SafetensorError, safe_open

ALLOWED = {
    "model": (".json", ".safetensors", ".md", ".png", ".jpg"),
    "dataset": (".parquet", ".json", ".csv", ".md", ".png"),
    "space": (".py", ".txt", ".md", ".png", ".jpg", ".svg", ".css", ".js", ".html", ".json"),
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib")
DATA = (
    ".parquet",
    ".arrow",
    ".dcm",
    ".dicom",
    ".npy",
    ".npz",
    ".nii",
    ".gz",
    ".mha",
    ".nrrd",
    ".h5",
    ".csv",
    ".jsonl",
    ".zip",
    ".tar",
)
FIRST_BYTES = {".png": b"\x89PNG", ".jpg": b"\xff\xd8\xff", ".parquet": b"PAR1"}
TEXT = (".json", ".md", ".csv", ".txt", ".py", ".css", ".js", ".html", ".svg")
ABSOLUTE_PATH = re.compile(
    r"""(?<![\w./<\\\])}!*-])(/(?:[\w.+@-]+/)+[\w.+@-]+|~/[\w.]+|[A-Za-z]:[\\/]{1,2}\w[^\s"']*)|(file:///?\S+)|(?<=")(/[\w.+@-]+)(?=")"""
)
SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bAKIA[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
UNFILLED = re.compile(
    r"TO FILL IN[^.\n]*|\{\{[^}\n]*\}?\}?|\{%[^%\n]*%?\}?|\[More Information Needed\]|\bTODO\b|\bFIXME\b|\bTBD\b"
)
CARDS = {"model": ModelCard, "dataset": DatasetCard, "space": SpaceCard}
REQUIRED = {
    "model": ("license", "library_name", "pipeline_tag", "tags"),
    "dataset": ("license", "pretty_name", "tags"),
    "space": ("title", "sdk", "sdk_version", "python_version", "app_file", "models", "license"),
}


def read_content(content: Path | bytes, limit: int = -1) -> bytes:
    """Bytes of a file to be pushed, which is a path or the content itself."""
    if isinstance(content, bytes):
        return content[:limit] if limit >= 0 else content
    with content.open("rb") as file:
        return file.read(limit)


def check_files(files: dict[str, Path | bytes], kind: str) -> None:
    """Raise ValueError for the first file that should not go out.

    Args:
        files: {path in the repository: path here, or content}.
        kind: "model", "dataset" or "space".
    """
    for name, content in sorted(files.items()):
        suffix = Path(name).suffix.lower()
        if suffix in PICKLES:
            raise ValueError(f"{name} is a pickle, which can run code where it is loaded; only safetensors go out.")
        if suffix not in ALLOWED[kind] and Path(name).name != "LICENSE":
            what = f"holds data, which have no place in a {kind}" if suffix in DATA else f"is no file of a {kind}"
            raise ValueError(f"{name} {what}: only {', '.join(ALLOWED[kind])} and LICENSE go out.")
        if suffix in FIRST_BYTES and not read_content(content, 4).startswith(FIRST_BYTES[suffix]):
            raise ValueError(f"{name} is no {suffix[1:].upper()} file by its first bytes.")
        if suffix == ".safetensors":
            try:
                with safe_open(content, framework="np") as weights:
                    text = json.dumps(weights.metadata() or {})
            except SafetensorError:
                raise ValueError(f"{name} is no safetensors file, whatever its name.") from None
        elif suffix in TEXT:
            try:
                text = read_content(content).decode()
                if suffix == ".json":
                    json.loads(text)
            except ValueError:
                raise ValueError(f"{name} is no {'JSON' if suffix == '.json' else 'UTF-8 text'}.") from None
        else:
            continue
        if SECRET.search(text):
            raise ValueError(f"{name} contains what looks like an access token or a private key.")
        if path := ABSOLUTE_PATH.search(text):
            raise ValueError(
                f"{name} contains the absolute path {path[0]!r}, which means nothing elsewhere and tells of this machine: take it out."
            )


def check_card(card: str, kind: str) -> None:
    """Raise ValueError unless the card (README.md) is filled and its metadata is what the Hub needs.

    Args:
        card: its text, metadata included.
        kind: "model", "dataset" or "space".
    """
    if unfilled := UNFILLED.search(card):
        raise ValueError(f"README.md has the unfilled field {unfilled[0].strip()!r}.")
    try:
        data = CARDS[kind](card, ignore_metadata_errors=False).data.to_dict()
    except Exception as error:  # YAML's errors and huggingface_hub's own have no common base
        raise ValueError(f"README.md has metadata that cannot be read: {' '.join(str(error).split())}") from None
    missing = [field for field in REQUIRED[kind] if not data.get(field)]
    if missing:
        raise ValueError(f"README.md has no `{missing[0]}` in its metadata, which a {kind} needs.")
    if data["license"] == "other" and not data.get("license_name"):
        raise ValueError(
            "README.md has `license: other` without a `license_name`, so nobody could know under which terms to use it."
        )
    if kind == "model" and data["library_name"] != "diffusers":
        raise ValueError(f"README.md has `library_name: {data['library_name']}`, but `diffusers` is needed.")
    if kind == "space" and data["sdk"] != "gradio":
        raise ValueError(f"README.md has `sdk: {data['sdk']}`, but `gradio` is needed.")
