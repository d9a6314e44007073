"""What the training scripts share: data flags, encoded rows, runs and losses."""
