"""Publish a pipeline, a prepared dataset or the page on the Hugging Face Hub; see lsdm_diffusers/hub/publish.py.

python hub_cards/publish.py model --repo_id user/lung-ct-small --dry_run --output_dir to-be-pushed
"""

from lsdm_diffusers.hub.publish import main

if __name__ == "__main__":
    main()
