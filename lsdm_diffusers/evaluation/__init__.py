"""What the evaluation scripts share: images, windows, metrics, measures, the judge and tables."""
