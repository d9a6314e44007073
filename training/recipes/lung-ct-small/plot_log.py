"""Draw the validation figures of a run of train.sh over its steps.

    python training/recipes/lung-ct-small/plot_log.py --log_dir training/recipes/lung-ct-small/log --output curves.png

The folder `log` beside this script has the logs of the run that trained the shipped checkpoint.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

NUM_ROWS, NUM_COLUMNS = 2, 3
PANEL_INCHES = (4.0, 3.2)
DOTS_PER_INCH = 100


@dataclass(frozen=True)
class Curve:
    """One figure of a phase of the training.

    Args:
        phase: name of the phase, which is that of its log without `.jsonl`.
        keys: where a line of the log has the figure: its name, after the name of its group if it has one.
        label: what is added to the phase's name in the legend.
    """

    phase: str
    keys: tuple[str, ...]
    label: str = ""

    def value(self, line: dict[str, Any]) -> float:
        """The figure in a line of the log."""
        value: Any = line
        for key in self.keys:
            value = value[key]
        return float("nan") if value is None else float(value)


PANELS = {
    "autoencoder: PSNR, dB": [Curve("vae-crops", ("psnr",)), Curve("vae", ("psnr",))],
    "autoencoder: error, HU": [Curve("vae-crops", ("mae_hu",)), Curve("vae", ("mae_hu",))],
    "U-Net: validation loss": [
        Curve("unet-crops", ("validation_loss",)),
        Curve("unet-slices", ("validation_loss",)),
        Curve("unet-more", ("validation_loss",)),
        Curve("unet-most", ("validation_loss",)),
        Curve("unet-ratings", ("validation_loss",)),
        Curve("unet", ("validation_loss",)),
    ],
    "malignancy: AUC at t = 20": [
        Curve("malignancy-first", ("t20", "auc_ge3")),
        Curve("malignancy", ("t20", "auc_ge3")),
        Curve("malignancy", ("t20", "auc_ge4"), label=", ratings >= 4"),
    ],
    "other ratings: Spearman at t = 20": [
        Curve("texture", ("t20", "spearman")),
        Curve("spiculation", ("t20", "spearman")),
        Curve("lobulation", ("t20", "spearman")),
    ],
}


def draw_curve(axes: Axes, curve: Curve, log_dir: Path) -> None:
    """Draw a curve; its legend says how long the phase took."""
    lines = [json.loads(text) for text in (log_dir / f"{curve.phase}.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    minutes = lines[-1]["seconds"] / 60
    label = f"{curve.phase}{curve.label} ({minutes:.0f} min)"
    axes.plot(steps, [curve.value(line) for line in lines], "o-", label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log_dir", type=Path, required=True, help="Folder with <phase>.jsonl for each phase.")
    parser.add_argument("--output", type=Path, required=True, help="PNG file to write.")
    args = parser.parse_args()
    figure = Figure(figsize=(NUM_COLUMNS * PANEL_INCHES[0], NUM_ROWS * PANEL_INCHES[1]), layout="constrained")
    for number, (title, curves) in enumerate(PANELS.items(), start=1):
        axes = figure.add_subplot(NUM_ROWS, NUM_COLUMNS, number)
        for curve in curves:
            try:
                draw_curve(axes, curve, args.log_dir)
            except FileNotFoundError:
                raise SystemExit(
                    f"--log_dir {args.log_dir} has no {curve.phase}.jsonl; copy the log.jsonl of that phase there."
                ) from None
        axes.set_title(title)
        axes.set_xlabel("step of the phase")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(args.output, dpi=DOTS_PER_INCH)


if __name__ == "__main__":
    main()
