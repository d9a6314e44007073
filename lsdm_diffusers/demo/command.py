"""The command `lsdm-demo`: serve the page that draws semantic maps and generates CT slices from them."""

import argparse
from collections.abc import Sequence

DEFAULT_ADDRESS, DEFAULT_PORT = "127.0.0.1", 7860


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, or `arguments` in its place."""
    parser = argparse.ArgumentParser(
        prog="lsdm-demo", description="Serve the page that draws semantic maps and generates CT slices from them."
    )
    parser.add_argument(
        "--pretrained_model_name_or_path",
        help="Folder or Hub id of a pipeline. Default: the small checkpoint that ships with the package.",
    )
    parser.add_argument(
        "--server_name",
        default=DEFAULT_ADDRESS,
        help="Address to listen at; 0.0.0.0 lets other machines reach the page. Default: %(default)s.",
    )
    parser.add_argument(
        "--server_port", type=int, default=DEFAULT_PORT, help="Port to listen at. Default: %(default)s."
    )
    parser.add_argument(
        "--device", help="Device of the models, such as cpu. Default: cuda if there is a GPU, else cpu."
    )
    parser.add_argument(
        "--share", action="store_true", help="Make a public link through Gradio's servers. Default: no such link."
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; `arguments` in place of those of the command line."""
    args = parse_args(arguments)
    from .page import build_demo, launch, load_pipeline  # gradio and torch take seconds, which --help does not need

    try:
        pipeline = load_pipeline(args.pretrained_model_name_or_path, args.device)
        launch(build_demo(pipeline), server_name=args.server_name, server_port=args.server_port, share=args.share)
    except (ValueError, OSError) as error:
        raise SystemExit(f"lsdm-demo: {error}") from error


if __name__ == "__main__":
    main()
