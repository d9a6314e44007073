"""Publishing on the Hugging Face Hub: model cards, uploads, code for users without this package."""
