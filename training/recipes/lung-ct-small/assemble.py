"""Put the trained stages together into one half-precision `from_pretrained` folder, as it ships in the package.

python training/recipes/lung-ct-small/assemble.py --training_dir lung-ct-small --output_dir lsdm_diffusers/checkpoints/lung-ct-small
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, SpadeUNet2DModel
from lsdm_diffusers.nodule_features import NODULE_FEATURES


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--training_dir", type=Path, required=True, help="folder with vae/, unet/pipeline/ and the four *_classifier/"
    )
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    trained = args.training_dir / "unet" / "pipeline"
    classifiers = {f"{feature}_classifier": args.training_dir / f"{feature}_classifier" for feature in NODULE_FEATURES}
    missing = [str(folder) for folder in (trained, *classifiers.values()) if not folder.is_dir()]
    if missing:
        raise SystemExit(f"--training_dir lacks {', '.join(missing)}; train.sh makes them.")
    pipe = LSDMGuidedPipeline(
        vae=AutoencoderKL.from_pretrained(args.training_dir / "vae"),
        unet=SpadeUNet2DModel.from_pretrained(trained / "unet"),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(trained / "scheduler"),
        **{name: NoduleClassifier.from_pretrained(folder) for name, folder in classifiers.items()},
    )
    pipe.to(torch.float16).save_pretrained(args.output_dir)
    for file in args.output_dir.rglob("*.json"):  # a local path says nothing to those who download the checkpoint
        config = json.loads(file.read_text())
        config.pop("_name_or_path", None)
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    size = sum(file.stat().st_size for file in args.output_dir.rglob("*.safetensors"))
    print(f"{args.output_dir}: {size / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
