"""The API endpoint `/generate` of the page: a map file in, slices and their parameters out."""

import json
import tempfile
import uuid

import gradio as gr

from ..io.export import export_ct
from ..io.map_upload import read_map_upload
from .generation import MAX_IMAGES, MAX_SCALE, MAX_STEPS, SAMPLERS, make_jobs
from .map_board import MAX_UPLOAD

DESCRIPTION = f"""Lung CT slices from a semantic map, synthetic, not for clinical use.

map_file: PNG of labels 0..7 or palette colours, or a CT slice (DICOM, .npy in HU, 16-bit PNG of HU + 1024) whose map is made first;
its height and width are padded to multiples of 32. features: JSON, null (no guidance), a dict for all nodules such as
{{"malignancy": "malignant", "spiculation": 4}}, or a list with a dict for each nodule in raster order; keys malignancy ("benign",
"malignant" or 1..5), lobulation, spiculation, texture (1..5). guidance_scale: 0..{MAX_SCALE}, 0 is off. sampler: {", ".join(SAMPLERS)}.
num_inference_steps: 1..{MAX_STEPS}. seed: 0 and up; same seed, same slice. num_images: 1..{MAX_IMAGES}, with the seeds that follow.
Returns the files of each slice (PNG in the lung window, .npy in HU) and the parameters."""


def add_generate_endpoint(pipeline, sample_all, multiple: int, uploads) -> None:
    """Add the endpoint to the `gr.Blocks` being built; `sample_all(jobs, with_unguided, session)` samples, `uploads` counts files."""

    def generate(
        map_file: str,
        features: str = "null",
        guidance_scale: float = 16.0,
        sampler: str = "DPM-Solver++",
        num_inference_steps: int = 20,
        seed: int = 0,
        num_images: int = 1,
    ):
        if not map_file:
            raise gr.Error("`map_file` is missing.", print_exception=False)
        try:
            try:
                upload = read_map_upload(map_file, max_bytes=MAX_UPLOAD)
            finally:
                uploads.done(map_file)
            try:
                wanted = json.loads(features or "null")
            except ValueError as error:
                raise ValueError(f"`features` is no JSON: {error}.") from error
            jobs = make_jobs(
                upload.semantic_map,
                upload.pixel_spacing,
                wanted,
                guidance_scale,
                sampler,
                num_inference_steps,
                seed,
                num_images,
                multiple=multiple,
            )
            files, made = [], []
            with tempfile.TemporaryDirectory() as folder:
                for kind, *news in sample_all(jobs, False, uuid.uuid4().hex):
                    if kind == "slice":
                        job, hu, _ = news
                        paths = export_ct(hu, folder, f"seed-{job.seed}", ("png", "npy"), job.pixel_spacing)
                        files += [str(path) for path in paths.values()]
                        made.append({**job.parameters(), "pixel_spacing_mm": job.pixel_spacing, "map": upload.message})
                yield files, made  # gradio takes copies before the folder goes
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error

    with gr.Column(visible=False):
        map_file = gr.File(label="map_file", type="filepath")
        map_file.preprocess = lambda file: (
            file and file.path
        )  # gradio's own leaves an empty temporary file at each call
        inputs = [
            map_file,
            gr.Textbox("null", label="features"),
            gr.Number(16.0, label="guidance_scale"),
            gr.Dropdown(list(SAMPLERS), label="sampler"),
            gr.Number(20, label="num_inference_steps"),
            gr.Number(0, label="seed"),
            gr.Number(1, label="num_images"),
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
