r"""Assemble the trained stages into one half-precision `from_pretrained` folder, as it ships in the package.

    python training/recipes/lung-ct-small/assemble.py --training_dir lung-ct-small \
        --output_dir lsdm_diffusers/checkpoints/lung-ct-small
"""

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler

from lsdm_diffusers import LSDMGuidedPipeline, NoduleClassifier, SpadeUNet2DModel
from lsdm_diffusers.hub.publishing import forget_origins
from lsdm_diffusers.nodule_features import NODULE_FEATURES

# docs/guides/guidance.md says why
RECOMMENDED_METHODS = {"malignancy": "classifier_free", "lobulation": "outline", "spiculation": "outline"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--training_dir",
        type=Path,
        required=True,
        help="Folder with vae/, unet/pipeline/, the four <feature>_classifier/ and ct_noise.json, as train.sh makes "
        "them.",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="Folder to write.")
    args = parser.parse_args()
    vae_dir, pipeline_dir = args.training_dir / "vae", args.training_dir / "unet" / "pipeline"
    classifier_dirs = {f"{name}_classifier": args.training_dir / f"{name}_classifier" for name in NODULE_FEATURES}
    noise_file = args.training_dir / "ct_noise.json"
    parts = (vae_dir, pipeline_dir, *classifier_dirs.values(), noise_file)
    missing = [str(part) for part in parts if not part.exists()]
    if missing:
        raise SystemExit(f"--training_dir lacks {', '.join(missing)}; train.sh makes them.")

    classifiers = {name: NoduleClassifier.from_pretrained(folder) for name, folder in classifier_dirs.items()}
    pipe = LSDMGuidedPipeline(
        vae=AutoencoderKL.from_pretrained(vae_dir),
        unet=SpadeUNet2DModel.from_pretrained(pipeline_dir / "unet"),
        scheduler=DPMSolverMultistepScheduler.from_pretrained(pipeline_dir / "scheduler"),
        **classifiers,
        guidance_methods=RECOMMENDED_METHODS,
        ct_noise=json.loads(noise_file.read_text()),
    )
    pipe.to(torch.float16).save_pretrained(args.output_dir)
    forget_origins(args.output_dir)
    num_bytes = sum(file.stat().st_size for file in args.output_dir.rglob("*.safetensors"))
    print(f"{args.output_dir}: {num_bytes / 1e6:.1f} MB of weights")


if __name__ == "__main__":
    main()
