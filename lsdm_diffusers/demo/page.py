"""The page: a board to draw the semantic map on, the generated slices beside it, and the events between them."""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

# Before gradio is imported: the page works without a network and reports to nobody.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr
import torch
from starlette.middleware import Middleware

from ..checkpoint import small_checkpoint
from ..pipeline_lsdm import LSDMGuidedPipeline
from ..sampling_defaults import CLASSIFIER, CLASSIFIER_FREE, CONTRAST, EXAGGERATED_SCALES, RECOMMENDED_SCALES
from .browser_calls import static_text
from .generate_endpoint import add_generate_endpoint
from .generation import GeneratedSlice, Progress, Stopped, run
from .jobs import (
    DEFAULT_GRAIN,
    DEFAULT_IMAGES,
    DEFAULT_MALIGNANCY_METHOD,
    DEFAULT_SAMPLER,
    DEFAULT_SEED,
    DEFAULT_STEPS,
    MALIGNANCY_METHODS,
    MAX_IMAGES,
    SAMPLERS,
    SIZES,
    Job,
    make_jobs,
    with_malignancy,
)
from .map_board import MAX_UPLOAD, board_key, map_board, read_board
from .request_limits import RequestLimit, Uploads
from .runs import Runs
from .slice_viewer import slice_value, slice_viewer, viewer_value

try:
    # ZeroGPU of Hugging Face Spaces: a GPU for the time of the call
    import spaces  # type: ignore[import-not-found] # installed on Spaces only

    GPU = spaces.GPU
except ImportError:

    def GPU(function: Callable[..., Any]) -> Callable[..., Any]:
        return function


TITLE = "Synthetic lung CT from a drawing"
NOTICE = '<p class="notice">Synthetic images for research and teaching. <strong>Not for clinical use.</strong></p>'
EXAGGERATED = {
    CLASSIFIER: f"From {EXAGGERATED_SCALES[CLASSIFIER]:g} on nodules grow into blobs, shrink or vanish, and the slice "
    "leaves the range of real ones.",
    CLASSIFIER_FREE: f"Nothing was measured from {EXAGGERATED_SCALES[CLASSIFIER_FREE]:g} on; the slice may leave the "
    "range of real ones.",
    CONTRAST: f"From {EXAGGERATED_SCALES[CONTRAST]:g} on benign nodules nearly vanish or become as bright as "
    "calcified ones, and the slice leaves the range of real ones.",
}
METHOD_NAMES = {
    CLASSIFIER_FREE: "the rating that the U-Net sees",
    CONTRAST: "contrast of the labels",
    CLASSIFIER: "the classifier's gradient",
}
SIZE_OF_MAP = "as the map"
MAX_SLIDER_STEPS, MAX_SLIDER_SCALE, MAX_SLIDER_GRAIN = (
    100,
    16,
    2,
)  # longer sliders would be hard to set; the API takes more
QUEUE_SIZE = 24  # requests that may wait; the next one is asked to come back
CONCURRENCY = 4  # events of the page that run at the same time; sampling runs one at a time
SESSIONS_KEPT = 200
FILE_CHECK_SECONDS, FILE_LIFETIME_SECONDS = 60, 600  # how often files of the API are looked at, and how long they stay
MAX_REQUEST = 2 * MAX_UPLOAD  # bytes; base64 and JSON make an upload larger by a third
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    font_mono=["monospace"],
)

SAMPLING_EVENT: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "sampling",
    "api_visibility": "private",
    "show_progress": "hidden",
}
QUICK_EVENT: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


class Settings(NamedTuple):
    """The components of the settings panel, in the order of the arguments of `jobs_of_page`."""

    guidance_scale: gr.Slider
    sampler: gr.Dropdown
    steps: gr.Slider
    seed: gr.Number
    images: gr.Slider
    size: gr.Dropdown
    malignancy_scale: gr.Slider
    malignancy_method: gr.Dropdown
    grain: gr.Slider


class Buttons(NamedTuple):
    """The buttons over the viewer."""

    generate: gr.Button
    compare: gr.Button
    cancel: gr.Button


def add_buttons() -> Buttons:
    """Add the buttons to the `gr.Blocks` being built."""
    with gr.Row(elem_classes="actions"):
        return Buttons(
            generate=gr.Button("Generate", variant="primary", min_width=120, elem_id="generate"),
            compare=gr.Button("Compare benign and malignant", variant="secondary", min_width=220, elem_id="compare"),
            cancel=gr.Button("Cancel", variant="stop", visible=False, min_width=90, elem_id="cancel"),
        )


def show_exaggerated(guidance_scale: Any, method: str = CLASSIFIER) -> Any:
    """Show the warning of a guidance scale at which slices are not like real ones, or hide it."""
    is_number = isinstance(guidance_scale, (int, float))
    text = f'<p class="exaggerated" role="status">{EXAGGERATED[method]}</p>'
    return gr.update(value=text, visible=is_number and guidance_scale >= EXAGGERATED_SCALES[method])


def scale_info(method: str) -> str:
    return f"0: off, {RECOMMENDED_SCALES[method]:g}: recommended, from {EXAGGERATED_SCALES[method]:g}: exaggerates"


def scale_slider(label: str, method: str) -> gr.Slider:
    """A slider of a guidance scale."""
    return gr.Slider(0, MAX_SLIDER_SCALE, RECOMMENDED_SCALES[method], step=0.25, label=label, info=scale_info(method))


def show_recommended(method: str) -> Any:
    """What the slider of malignancy's scale shows for a method."""
    return gr.update(value=RECOMMENDED_SCALES[method], info=scale_info(method))


def add_settings(
    malignancy_method: str = DEFAULT_MALIGNANCY_METHOD, with_grain: bool = True, with_ratings: bool = False
) -> tuple[Settings, gr.Checkbox]:
    """Add the settings panel to the `gr.Blocks` being built.

    Args:
        malignancy_method: what guides malignancy at first.
        with_grain: whether the checkpoint knows the noise of CT.
        with_ratings: whether its U-Net sees ratings.

    Returns:
        The components, and the checkbox that asks for slices without guidance, too.
    """
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            methods = [method for method in MALIGNANCY_METHODS if with_ratings or method != CLASSIFIER_FREE]
            choices = [(METHOD_NAMES[method], method) for method in methods]
            method = gr.Dropdown(
                choices, value=malignancy_method, label="Malignancy by", info="how nodules become benign or malignant"
            )
            malignancy_scale = scale_slider("Scale of malignancy", malignancy_method)
        exaggerated_malignancy = gr.HTML(visible=False, apply_default_css=False)
        guidance_scale = scale_slider("Scale of the other features", CLASSIFIER)
        exaggerated = gr.HTML(visible=False, apply_default_css=False)
        guidance_scale.change(show_exaggerated, guidance_scale, exaggerated, **QUICK_EVENT)
        malignancy_inputs = [malignancy_scale, method]
        malignancy_scale.change(show_exaggerated, malignancy_inputs, exaggerated_malignancy, **QUICK_EVENT)
        method.change(show_recommended, method, malignancy_scale, **QUICK_EVENT)
        with gr.Row():
            steps = gr.Slider(1, MAX_SLIDER_STEPS, DEFAULT_STEPS, step=1, label="Steps", info="more: finer and slower")
            sampler = gr.Dropdown(
                list(SAMPLERS), value=DEFAULT_SAMPLER, label="Sampler", info="the scheduler of diffusers"
            )
        with gr.Row():
            seed = gr.Number(
                DEFAULT_SEED, precision=0, minimum=0, label="Seed", info="same seed, same slice", min_width=140
            )
            images = gr.Slider(
                1, MAX_IMAGES, DEFAULT_IMAGES, step=1, label="Images", info="with the seeds that follow", min_width=140
            )
            size = gr.Dropdown(
                [SIZE_OF_MAP, *SIZES], value=SIZE_OF_MAP, label="Size", info="pixels of the longer edge", min_width=140
            )
        grain = gr.Slider(
            0,
            MAX_SLIDER_GRAIN,
            DEFAULT_GRAIN,
            step=0.1,
            label="Grain",
            info="CT noise: 0: none, 1: as much as real slices have, more: a lower dose",
            visible=with_grain,
        )
        with_unguided = gr.Checkbox(label="Also without guidance, for the difference (takes twice as long)")
    settings = Settings(guidance_scale, sampler, steps, seed, images, size, malignancy_scale, method, grain)
    return settings, with_unguided


def jobs_of_page(
    board: Any,
    guidance_scale: Any,
    sampler: Any,
    steps: Any,
    seed: Any,
    images: Any,
    size: Any,
    malignancy_scale: Any,
    malignancy_method: Any,
    grain: Any,
    compare: bool,
    multiple: int,
) -> list[Job]:
    """Make the jobs for the values of the page's components.

    Args:
        board: the value of the board.
        guidance_scale, sampler, steps, seed, images, size: the values of the settings.
        malignancy_scale, malignancy_method, grain: further ones.
        compare: whether to make each nodule benign and malignant, with one seed.
        multiple: height and width of the map must be multiples of it.

    Raises:
        ValueError: for a value that cannot be sampled.
    """
    semantic_map, pixel_spacing, features = read_board(board)
    jobs = make_jobs(
        semantic_map,
        pixel_spacing,
        features,
        guidance_scale,
        sampler,
        steps,
        seed,
        num_images=1 if compare else images,
        size=None if size == SIZE_OF_MAP else size,
        malignancy_scale=malignancy_scale,
        malignancy_method=malignancy_method,
        grain=grain,
        multiple=multiple,
    )
    if not compare:
        return jobs
    if not features:
        raise ValueError("There is no nodule to compare: click on a lung of the map to place one.")
    if malignancy_scale == 0:
        raise ValueError("The scale of malignancy is 0, at which benign and malignant are alike; take a larger one.")
    return with_malignancy(jobs, "benign") + with_malignancy(jobs, "malignant")


def shown_values(busy: bool, **viewer: Any) -> tuple[Any, ...]:
    """Values of the viewer and of the buttons Generate, Compare and Cancel; `viewer` as for `viewer_value`."""
    return (
        viewer_value(**viewer),
        gr.update(interactive=not busy),
        gr.update(interactive=not busy),
        gr.update(visible=busy),
    )


def show_cancelled() -> tuple[Any, ...]:
    return shown_values(False, message="Cancelled.")


def build_demo(pipeline: LSDMGuidedPipeline) -> gr.Blocks:
    """Build the page.

    Args:
        pipeline: the pipeline that makes the slices. It is not changed.

    Example:
        >>> from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
        >>> demo = build_demo(LSDMGuidedPipeline.from_pretrained(small_checkpoint()))  # doctest: +SKIP
        >>> launch(demo)  # doctest: +SKIP
    """
    multiple = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    runs = Runs()

    def show_start() -> tuple[Any, ...]:
        text = "Waiting until the slices before yours are made" if len(runs) else "Starting"
        return shown_values(True, progress=Progress(0, text))

    @GPU
    def sample_jobs(jobs: Sequence[Job], with_unguided: bool, session: str) -> Iterator[Progress | GeneratedSlice]:
        stop = runs.start(session)
        try:
            yield from run(pipeline, jobs, with_unguided, stop)
        finally:
            runs.end(session, stop)

    def show_slices(
        board: Any,
        guidance_scale: Any,
        sampler: Any,
        steps: Any,
        seed: Any,
        images: Any,
        size: Any,
        malignancy_scale: Any,
        malignancy_method: Any,
        grain: Any,
        with_unguided: bool,
        compare: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        values = (guidance_scale, sampler, steps, seed, images, size, malignancy_scale, malignancy_method, grain)
        slices: list[dict[str, Any]] = []
        try:
            jobs = jobs_of_page(board, *values, compare, multiple)
            for update in sample_jobs(jobs, with_unguided and not compare, request.session_hash):
                if isinstance(update, Progress):
                    yield shown_values(True, slices=slices, compare=compare, progress=update)
                else:
                    slices.append(slice_value(update, board_key(board)))
            yield shown_values(False, slices=slices, compare=compare)
        except Stopped:
            yield show_cancelled()
        except ValueError as error:
            gr.Warning(str(error))
            yield shown_values(False, slices=slices, compare=compare, message=str(error))

    def cancel(request: gr.Request) -> tuple[Any, ...]:
        runs.stop(str(request.session_hash))
        return show_cancelled()

    def show_failure(request: gr.Request) -> Any:
        if runs.just_cancelled(str(request.session_hash)):
            return gr.skip()
        message = "No slice was made: too many are waiting, or the server failed. Try again in a minute."
        return shown_values(False, message=message)

    uploads = Uploads()
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(FILE_CHECK_SECONDS, FILE_LIFETIME_SECONDS)
    ) as demo:
        # gradio's own lists of uploaded files, and of the files that `delete_cache` removes
        demo.upload_file_set = uploads
        demo.temp_file_sets[0] = uploads
        gr.HTML(f'<header class="page-header"><h1>{TITLE}</h1>{NOTICE}</header>', apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=5, min_width=340):
                board = map_board(elem_id="board")
            with gr.Column(scale=7, min_width=340):
                buttons = add_buttons()
                viewer = slice_viewer(elem_id="viewer")
                method = pipeline.recommended_methods()["malignancy"]
                settings, with_unguided = add_settings(
                    method, bool(pipeline.config.get("ct_noise")), pipeline.unet.config.rating_channels > 0
                )

        shown = [viewer, *buttons]
        runs_to_cancel = []
        for button, compare in ((buttons.generate, False), (buttons.compare, True)):
            inputs = [board, *settings, with_unguided, gr.State(compare)]
            sampling = button.click(show_start, None, shown, **QUICK_EVENT).then(
                show_slices, inputs, shown, **SAMPLING_EVENT
            )
            sampling.failure(show_failure, None, shown, **QUICK_EVENT)
            runs_to_cancel.append(sampling)
        buttons.cancel.click(cancel, None, shown, cancels=runs_to_cancel, **QUICK_EVENT)
        add_generate_endpoint(sample_jobs, multiple, uploads, method)
    demo.queue(max_size=QUEUE_SIZE, default_concurrency_limit=CONCURRENCY)
    return demo


def launch(demo: gr.Blocks, **arguments: Any) -> Any:
    """Call `demo.launch` with the looks and limits of the page.

    Args:
        demo: what `build_demo` returned.
        arguments: arguments of `demo.launch` to add or to replace.

    Returns:
        What `demo.launch` returns.
    """
    uploads = cast(Uploads, demo.upload_file_set)  # see `build_demo`
    limit = Middleware(RequestLimit, max_bytes=MAX_REQUEST, uploads=uploads)
    defaults = {
        "theme": THEME,
        "css": static_text("page.css"),
        "max_file_size": MAX_UPLOAD,
        "state_session_capacity": SESSIONS_KEPT,
        "app_kwargs": {"middleware": [limit]},
        "footer_links": ["api", "gradio"],
        "show_error": True,
        "ssr_mode": False,
        "enable_monitoring": False,
        "share": False,
    }
    return demo.launch(**{**defaults, **arguments})


def load_pipeline(pretrained_model_name_or_path: str | None = None, device: str | None = None) -> LSDMGuidedPipeline:
    """Load the pipeline of the page.

    Args:
        pretrained_model_name_or_path: folder or Hub id; None for the small checkpoint that ships with the package.
        device: None for "cuda" if there is a GPU, else "cpu".
    """
    pipeline: LSDMGuidedPipeline = LSDMGuidedPipeline.from_pretrained(
        pretrained_model_name_or_path or small_checkpoint()
    )
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for module in (pipeline.vae, *pipeline.classifiers.values()):
        module.to(memory_format=torch.channels_last)  # makes guidance faster on a CPU
    return pipeline
