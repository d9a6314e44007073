"""The page as a file to run: `python demo/app.py`, `gradio demo/app.py` or a Space; the same as the command `lsdm-demo`."""

from lsdm_diffusers.demo.page import build_demo, launch, load_pipeline, main

__all__ = ["build_demo", "demo", "main"]

demo = build_demo(load_pipeline())

if __name__ == "__main__":
    launch(demo)
