"""Draw the validation figures of a run of train.sh over its steps; `log/` has those of the shipped checkpoint's run.

python training/recipes/lung-ct-small/plot_log.py --log_dir training/recipes/lung-ct-small/log --output training/curves.png
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

PHASES = {
    "autoencoder: PSNR, dB": {"vae-crops": ("psnr",), "vae": ("psnr",)},
    "autoencoder: error, HU": {"vae-crops": ("mae_hu",), "vae": ("mae_hu",)},
    "U-Net: validation loss": {
        name: ("validation_loss",) for name in ("unet-crops", "unet-slices", "unet-more", "unet")
    },
    "malignancy: AUC, t = 20": {
        "malignancy-first": ("t20", "auc_ge3"),
        "malignancy": ("t20", "auc_ge3"),
        "malignancy, >= 4": ("t20", "auc_ge4"),
    },
    "ratings: Spearman, t = 20": {name: ("t20", "spearman") for name in ("texture", "spiculation", "lobulation")},
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--log_dir", type=Path, required=True, help="folder of <phase>.jsonl")
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    args = parser.parse_args()
    figure = Figure(figsize=(4 * len(PHASES), 3.2), layout="constrained")
    for axis, (title, curves) in zip(figure.subplots(1, len(PHASES)), PHASES.items(), strict=True):
        for name, keys in curves.items():
            rows = [
                json.loads(line) for line in (args.log_dir / f"{name.split(',')[0]}.jsonl").read_text().splitlines()
            ]
            values = [row[keys[0]] if len(keys) == 1 else row[keys[0]][keys[1]] for row in rows]
            axis.plot(
                [row["step"] for row in rows], values, "o-", label=f"{name} ({rows[-1]['seconds'] / 60:.0f} min)"
            )
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step of the phase", fontsize=8)
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    figure.savefig(args.output, dpi=80)


if __name__ == "__main__":
    main()
