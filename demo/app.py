"""The page as a file to run: `python demo/app.py`, `gradio demo/app.py`, or as a Space; `lsdm-demo` is the command."""

from lsdm_diffusers.demo.page import build_demo, launch, load_pipeline

demo = build_demo(load_pipeline())

if __name__ == "__main__":
    launch(demo)
