"""The page: a board to draw the semantic map on, the generated slices beside it, and the command `lsdm-demo` that serves it."""

import argparse
import os
import threading

os.environ.setdefault(
    "GRADIO_ANALYTICS_ENABLED", "False"
)  # before gradio is imported: the page must work offline, and tells nobody

import gradio as gr
import torch
from starlette.middleware import Middleware

from .. import LSDMGuidedPipeline, small_checkpoint
from .generate_endpoint import add_generate_endpoint
from .generation import MAX_IMAGES, MAX_SCALE, SAMPLERS, SIZES, Stopped, make_jobs, run, with_malignancy
from .map_board import MAX_UPLOAD, map_board, read_board
from .request_limits import RequestLimit, Uploads
from .slice_viewer import slice_value, slice_viewer

try:
    from spaces import GPU  # ZeroGPU of Hugging Face Spaces: a GPU for the time of the call
except ImportError:

    def GPU(function):
        return function


TITLE = "Synthetic lung CT from a drawing"
NOTICE = '<p class="notice">Synthetic images for research and teaching. <strong>Not for clinical use.</strong></p>'
QUEUE = 24  # requests that may wait; the next is told to come back
FILE_LIFETIME = 600  # seconds until a file of the API is removed at the latest
CSS = """
.gradio-container .main { max-width: 1480px !important; padding: 14px 24px !important; }
.gradio-container .html-container { padding: 0 !important; }
.page-header { display: flex; flex-wrap: wrap; gap: 8px 24px; align-items: center; justify-content: space-between; }
.page-header h1 { margin: 0; font-size: 24px; font-weight: 700; }
.notice { margin: 0; background: #fffbeb; border: 1px solid #fcd34d; color: #78350f; border-radius: 8px; padding: 6px 14px; font-size: 14px; }
.notice strong { color: #78350f; }
.dark .notice { margin: 0; background: #451a03; border-color: #92400e; color: #fde68a; }
.dark .notice strong { color: #fde68a; }
.actions button { min-height: 46px; }
@media (max-width: 640px) { .page-header h1 { font-size: 20px; } .gradio-container .main { padding: 10px 14px !important; } }
"""
THEME = gr.themes.Base(
    primary_hue="blue",
    neutral_hue="slate",
    radius_size="md",
    font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    font_mono=["monospace"],
)


class Runs:
    """The events that stop running samplings, by session."""

    def __init__(self):
        self._stops = {}

    def start(self, session: str) -> threading.Event:
        stop = self._stops[session] = threading.Event()
        return stop

    def end(self, session: str, stop: threading.Event) -> None:
        if self._stops.get(session) is stop:
            del self._stops[session]

    def stop(self, session: str) -> None:
        if session in self._stops:
            self._stops[session].set()


def build_demo(pipeline: LSDMGuidedPipeline) -> gr.Blocks:
    """The page, sampling with `pipeline`, whose components are used as they are and not changed.

    Example:
        >>> from lsdm_diffusers import LSDMGuidedPipeline, small_checkpoint
        >>> demo = build_demo(LSDMGuidedPipeline.from_pretrained(small_checkpoint()))  # doctest: +SKIP
        >>> launch(demo)  # doctest: +SKIP
    """
    multiple = pipeline.vae_scale_factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
    runs = Runs()

    @GPU
    def sample_all(jobs, with_unguided, session):
        stop = runs.start(session)
        try:
            yield from run(pipeline, jobs, with_unguided, stop)
        finally:
            runs.end(session, stop)

    def viewer_and_buttons(busy: bool, compare=False, slices=(), progress=None, message=None):
        """Values of the viewer and of the buttons Generate, Compare and Cancel."""
        value = {"slices": list(slices), "compare": compare, "progress": progress, "message": message}
        return value, gr.update(interactive=not busy), gr.update(interactive=not busy), gr.update(visible=busy)

    def wait():
        return viewer_and_buttons(True, progress={"fraction": 0, "text": "Waiting for a free place", "preview": None})

    def show_slices(board, scale, sampler, steps, seed, images, size, with_unguided, compare, request: gr.Request):
        slices = []
        try:
            semantic_map, pixel_spacing, features = read_board(board)
            size = None if size == "as the map" else size
            jobs = make_jobs(
                semantic_map,
                pixel_spacing,
                features,
                scale,
                sampler,
                steps,
                seed,
                1 if compare else images,
                size,
                multiple,
            )
            if compare:
                if not features:
                    raise ValueError("There is no nodule to compare: click on a lung of the map to place one.")
                if scale == 0:
                    raise ValueError(
                        "`guidance_scale` is 0, at which benign and malignant are the same; take a larger one."
                    )
                jobs = with_malignancy(jobs, "benign") + with_malignancy(jobs, "malignant")
            for kind, *news in sample_all(jobs, with_unguided and not compare, request.session_hash):
                if kind == "step":
                    yield viewer_and_buttons(
                        True, compare, slices, dict(zip(("fraction", "text", "preview"), news, strict=True))
                    )
                else:
                    job, hu, unguided = news
                    slices.append(
                        slice_value(hu, job.semantic_map, job.pixel_spacing, job.title, job.parameters(), unguided)
                    )
            yield viewer_and_buttons(False, compare, slices)
        except Stopped:
            yield cancelled()
        except ValueError as error:
            gr.Warning(str(error))
            yield viewer_and_buttons(False, compare, slices, message=str(error))

    def cancelled():
        return viewer_and_buttons(False, message="Cancelled.")

    def cancel(request: gr.Request):
        runs.stop(request.session_hash)
        return cancelled()

    def failed():
        return viewer_and_buttons(
            False, message="No slice was made: too many are waiting, or the server failed. Try again in a minute."
        )

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(60, FILE_LIFETIME)) as demo:
        demo.upload_file_set = Uploads()
        demo.temp_file_sets[0] = demo.upload_file_set
        gr.HTML(f'<header class="page-header"><h1>{TITLE}</h1>{NOTICE}</header>', apply_default_css=False)
        with gr.Row():
            with gr.Column(scale=5, min_width=340):
                board = map_board(elem_id="board")
            with gr.Column(scale=7, min_width=340):
                with gr.Row(elem_classes="actions"):
                    generate_button = gr.Button("Generate", variant="primary", min_width=120, elem_id="generate")
                    compare_button = gr.Button(
                        "Compare benign and malignant", variant="secondary", min_width=220, elem_id="compare"
                    )
                    cancel_button = gr.Button("Cancel", variant="stop", visible=False, min_width=90, elem_id="cancel")
                viewer = slice_viewer(elem_id="viewer")
                with gr.Accordion("Settings", open=False):
                    scale = gr.Slider(
                        0,
                        MAX_SCALE,
                        16,
                        step=1,
                        label="Guidance scale",
                        info="0: off, 1: Bayes' rule, more exaggerates",
                    )
                    with gr.Row():
                        steps = gr.Slider(1, 100, 20, step=1, label="Steps", info="more: finer and slower")
                        sampler = gr.Dropdown(list(SAMPLERS), label="Sampler", info="the scheduler of diffusers")
                    with gr.Row():
                        seed = gr.Number(
                            0, precision=0, minimum=0, label="Seed", info="same seed, same slice", min_width=100
                        )
                        images = gr.Slider(
                            1, MAX_IMAGES, 1, step=1, label="Images", info="with the seeds that follow", min_width=100
                        )
                        size = gr.Dropdown(
                            ["as the map", *SIZES], label="Size", info="pixels of the longer edge", min_width=100
                        )
                    with_unguided = gr.Checkbox(
                        label="Also without guidance, for the difference (takes twice as long)"
                    )
        settings = [board, scale, sampler, steps, seed, images, size, with_unguided]
        shown = [viewer, generate_button, compare_button, cancel_button]
        sampling = {
            "concurrency_limit": 1,
            "concurrency_id": "sampling",
            "api_visibility": "private",
            "show_progress": "hidden",
        }
        quick = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}
        started = []
        for button, compare in ((generate_button, False), (compare_button, True)):
            started.append(
                button.click(wait, None, shown, **quick).then(
                    show_slices, [*settings, gr.State(compare)], shown, **sampling
                )
            )
            started[-1].failure(failed, None, shown, **quick)
        cancel_button.click(cancel, None, shown, cancels=started, **quick)
        add_generate_endpoint(pipeline, sample_all, multiple, demo.upload_file_set)
    demo.queue(max_size=QUEUE, default_concurrency_limit=4)
    return demo


def launch(demo: gr.Blocks, **arguments):
    """`demo.launch` with the page's looks and limits; `arguments` go before them."""
    limits = {"middleware": [Middleware(RequestLimit, max_bytes=2 * MAX_UPLOAD, uploads=demo.upload_file_set)]}
    defaults = {
        "theme": THEME,
        "css": CSS,
        "max_file_size": MAX_UPLOAD,
        "state_session_capacity": 200,
        "app_kwargs": limits,
        "footer_links": ["api", "gradio"],
        "show_error": True,
        "ssr_mode": False,
        "enable_monitoring": False,
        "share": False,
    }
    return demo.launch(**{**defaults, **arguments})


def load_pipeline(pretrained_model_name_or_path: str | None = None, device: str | None = None) -> LSDMGuidedPipeline:
    """The pipeline of a folder or Hub id, by default the shipped one, on the GPU where there is one."""
    pipeline = LSDMGuidedPipeline.from_pretrained(pretrained_model_name_or_path or small_checkpoint())
    pipeline.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for module in (pipeline.vae, *pipeline.classifiers.values()):
        module.to(memory_format=torch.channels_last)  # makes guidance faster on a CPU
    return pipeline


def main(arguments=None) -> None:
    """Run the command `lsdm-demo`; `arguments` instead of those of the command line."""
    parser = argparse.ArgumentParser(
        prog="lsdm-demo", description="Serve the page that draws semantic maps and generates CT slices from them."
    )
    parser.add_argument(
        "--pretrained_model_name_or_path", help="folder or Hub id of a pipeline; default: the shipped small checkpoint"
    )
    parser.add_argument(
        "--server_name",
        default="127.0.0.1",
        help="address to listen at; 0.0.0.0 for other machines too (default 127.0.0.1)",
    )
    parser.add_argument("--server_port", type=int, default=7860, help="port to listen at (default 7860)")
    parser.add_argument("--device", help="default: cuda where there is one, or cpu")
    parser.add_argument("--share", action="store_true", help="a public link through Gradio's servers (default: none)")
    args = parser.parse_args(arguments)
    try:
        pipeline = load_pipeline(args.pretrained_model_name_or_path, args.device)
        launch(build_demo(pipeline), server_name=args.server_name, server_port=args.server_port, share=args.share)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lsdm-demo: {error}") from error


if __name__ == "__main__":
    main()
