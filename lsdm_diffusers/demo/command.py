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
    print("Loading PyTorch, diffusers and Gradio ...", flush=True)
    from .page import build_demo, launch, load_pipeline  # gradio and torch take seconds, which --help does not need

    try:
        print(f"Loading {args.pretrained_model_name_or_path or 'the small checkpoint of the package'} ...", flush=True)
        pipeline = load_pipeline(args.pretrained_model_name_or_path, args.device)
        print("Starting the page ...", flush=True)
        demo = build_demo(pipeline)
        _, address, public_address = launch(
            demo,
            server_name=args.server_name,
            server_port=args.server_port,
            share=args.share,
            quiet=True,  # gradio's own lines name arguments of `launch`, not flags of this command
            prevent_thread_lock=True,
        )
    except (ValueError, OSError) as error:
        raise SystemExit(f"lsdm-demo: {error}") from error
    print(f"The page is at {address} until you press Ctrl+C.")
    if public_address:
        print(f"Everybody reaches it at {public_address} as well.", flush=True)
    else:
        print("`lsdm-demo --share` also makes a public link, through Gradio's servers.", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
