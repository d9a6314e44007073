"""The settings of sampling that the page, the commands and the documents recommend for the shipped weights.

docs/results/steps.md and docs/results/control.md have the measurements. The default of the pipeline's
`guidance_scale` is 1, Bayes' rule, as in the thesis.
"""

NUM_STEPS = 25  # slices of the shipped scheduler are within 1.1 HU of those of 250 steps
GUIDANCE_SCALE = 2.0  # texture, lobulation and spiculation are seen, and nodules keep the outline of the map
EXAGGERATED_SCALE = 8.0  # from here on nodules grow into blobs, shrink or vanish
