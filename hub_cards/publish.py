"""Publish a pipeline, a prepared dataset or the page on the Hugging Face Hub.

    python hub_cards/publish.py model --repo_id user/lung-ct-small --dry_run --output_dir to-be-pushed
    python hub_cards/publish.py model --repo_id user/lung-ct \\
        --pretrained_model_name_or_path lsdm/unet/pipeline --results evaluated/results.json
    python hub_cards/publish.py dataset --repo_id user/lidc-slices --dataset_dir lidc-dataset --private
    python hub_cards/publish.py space --repo_id user/lsdm --model_id user/lung-ct-small

The code is in lsdm_diffusers/hub/publish.py, whose --help explains the flags.
"""

from lsdm_diffusers.hub.publish import main

if __name__ == "__main__":
    main()
