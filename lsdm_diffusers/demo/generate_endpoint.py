"""The API endpoint `/generate` of the page, for programs: a map file in, slices and their parameters out."""

import json
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from ..io.export import export_ct
from ..io.map_upload import read_map_upload
from .generation import GeneratedSlice, Progress
from .jobs import (
    DEFAULT_GRAIN,
    DEFAULT_IMAGES,
    DEFAULT_MALIGNANCY_METHOD,
    DEFAULT_SAMPLER,
    DEFAULT_SCALE,
    DEFAULT_SEED,
    DEFAULT_STEPS,
    MALIGNANCY_METHODS,
    MAX_GRAIN,
    MAX_IMAGES,
    MAX_SCALE,
    MAX_STEPS,
    SAMPLERS,
    Job,
    make_jobs,
)
from .map_board import MAX_UPLOAD
from .map_file import map_png
from .request_limits import Uploads

SampleJobs = Callable[[Sequence[Job], bool, str], Iterator[Progress | GeneratedSlice]]

FORMATS = ("png", "npy")  # of the files that a call returns
NO_FEATURES = "null"
DESCRIPTION = f"""Lung CT slices from a semantic map, synthetic, not for clinical use.

map_file: PNG, .npy or NIfTI of labels 0..7, PNG in palette colours, or a CT slice (DICOM, .npy in HU, 16-bit PNG of
HU + 1024), from which the map is made; its height and width are padded to multiples of 32. features: JSON,
null (no guidance), a dict for all
nodules such as {{"malignancy": "malignant", "spiculation": 4}}, or a list with a dict for each nodule in raster order;
keys malignancy ("benign", "malignant" or 1..5), lobulation, spiculation, texture (1..5). guidance_scale: of
lobulation, spiculation and texture, 0..{MAX_SCALE}, 0 is off. sampler: {", ".join(SAMPLERS)}.
num_inference_steps: 1..{MAX_STEPS}. seed: 0 and up; the same seed gives the same slice. num_images: 1..{MAX_IMAGES},
with the seeds that follow. malignancy_scale: of malignancy, 0..{MAX_SCALE}; null is what its method recommends.
malignancy_method: {" or ".join(MALIGNANCY_METHODS)}. grain: CT noise, 0..{MAX_GRAIN}; 0 is none, 1 as much as real
slices have. Returns the files of each slice
(PNG in the lung window, .npy in HU), semantic_map.png (the map they were made from), and the parameters."""


def read_features(text: str | None) -> Any:
    """Read the argument `features` of the endpoint.

    Raises:
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(text or NO_FEATURES)
    except ValueError as error:
        raise ValueError(f"`features` is no JSON: {error}.") from error


def path_of_upload(file: FileData | None) -> str | None:
    """Where gradio has saved an uploaded file."""
    return file.path if file else None


def add_generate_endpoint(
    sample_jobs: SampleJobs, multiple: int, uploads: Uploads, default_method: str = DEFAULT_MALIGNANCY_METHOD
) -> None:
    """Add the endpoint to the `gr.Blocks` being built.

    Args:
        sample_jobs: called with the jobs, whether to make each without guidance too, and the name of the session.
        multiple: height and width of a map must be multiples of it.
        uploads: which files were uploaded; the endpoint says when it has used one.
        default_method: what guides malignancy where a call does not say it.
    """

    def generate(
        map_file: str,
        features: str = NO_FEATURES,
        guidance_scale: float = DEFAULT_SCALE,
        sampler: str = DEFAULT_SAMPLER,
        num_inference_steps: int = DEFAULT_STEPS,
        seed: int = DEFAULT_SEED,
        num_images: int = DEFAULT_IMAGES,
        malignancy_scale: float | None = None,
        malignancy_method: str = default_method,
        grain: float = DEFAULT_GRAIN,
    ) -> Iterator[tuple[list[str], list[dict[str, Any]]]]:
        if not map_file:
            raise gr.Error("`map_file` is missing.", print_exception=False)
        try:
            try:
                upload = read_map_upload(map_file, max_bytes=MAX_UPLOAD)
            finally:
                uploads.done(map_file)
            jobs = make_jobs(
                upload.semantic_map,
                upload.pixel_spacing,
                read_features(features),
                guidance_scale,
                sampler,
                num_inference_steps,
                seed,
                num_images,
                malignancy_scale=malignancy_scale,
                malignancy_method=malignancy_method,
                grain=grain,
                multiple=multiple,
            )
            files: list[str] = []
            parameters: list[dict[str, Any]] = []
            with tempfile.TemporaryDirectory() as folder:
                for update in sample_jobs(jobs, False, uuid.uuid4().hex):
                    if isinstance(update, Progress):
                        continue
                    job, drawn_map = update.job, update.drawn_map  # one map for all seeds
                    paths = export_ct(update.hu, folder, f"seed-{job.seed}", FORMATS, job.pixel_spacing)
                    files += [str(path) for path in paths.values()]
                    parameters.append(
                        {**job.parameters(), "pixel_spacing_mm": job.pixel_spacing, "map": upload.message}
                    )
                map_path = Path(folder) / "semantic_map.png"
                map_path.write_bytes(map_png(drawn_map, jobs[0].pixel_spacing))
                yield [*files, str(map_path)], parameters  # gradio copies the files before the folder is removed
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Column(visible=False):
        map_file = gr.File(label="map_file", type="filepath")
        # gradio's own method leaves an empty temporary file at each call
        map_file.preprocess = path_of_upload  # type: ignore[method-assign, assignment]
        inputs = [
            map_file,
            gr.Textbox(NO_FEATURES, label="features"),
            gr.Number(DEFAULT_SCALE, label="guidance_scale"),
            gr.Dropdown(list(SAMPLERS), value=DEFAULT_SAMPLER, label="sampler"),
            gr.Number(DEFAULT_STEPS, label="num_inference_steps"),
            gr.Number(DEFAULT_SEED, label="seed"),
            gr.Number(DEFAULT_IMAGES, label="num_images"),
            gr.Number(None, label="malignancy_scale"),
            gr.Dropdown(list(MALIGNANCY_METHODS), value=default_method, label="malignancy_method"),
            gr.Number(DEFAULT_GRAIN, label="grain"),
        ]
        outputs = [gr.File(label="files", file_count="multiple"), gr.JSON(label="parameters")]
        gr.Button("generate").click(
            generate,
            inputs,
            outputs,
            api_name="generate",
            api_description=DESCRIPTION,
            concurrency_limit=1,
            concurrency_id="sampling",
        )
