"""The settings of sampling that the page, the commands and the documents recommend for the shipped weights.

docs/results/steps.md and docs/guides/guidance.md have the measurements. The default of the pipeline's
`guidance_scale` is 1, Bayes' rule, as in the thesis.
"""

from collections.abc import Mapping

NUM_STEPS = 25  # slices of the shipped scheduler are within 1.1 HU of those of 250 steps
GUIDANCE_SCALE = 2.0  # by classifiers: texture, lobulation and spiculation are seen, nodules keep the map's outline
GRAIN = 0.0  # no noise; the slice as the decoder draws it

# Names of the guidance methods, and the scale that each is recommended at.
CLASSIFIER, CONTRAST, CLASSIFIER_FREE, OUTLINE = "classifier", "contrast", "classifier_free", "outline"
RECOMMENDED_SCALES = {
    CLASSIFIER: GUIDANCE_SCALE,
    CONTRAST: 1.0,  # with the weights of version 0.1.0 nodules differ as real ones do
    CLASSIFIER_FREE: 2.0,  # malignancy by ratings; 1 is what the U-Net itself draws for them
    OUTLINE: 1.0,  # any scale but 0 draws the asked outline
}
# Where a feature wants another scale than its method: from 2 on, ground glass vanishes.
SCALES_OF_FEATURES = {("texture", CLASSIFIER_FREE): 1.0}
# From these scales on the slice leaves the range of real ones; an outline has no strength.
EXAGGERATED_SCALES = {
    CLASSIFIER: 8.0,  # nodules grow into blobs, shrink or vanish
    CONTRAST: 2.0,  # benign nodules nearly vanish, or become as bright as calcified ones
    CLASSIFIER_FREE: 4.0,  # beyond what was measured
}


def recommended_scales(methods: Mapping[str, str]) -> dict[str, float]:
    """The recommended guidance scale of each feature.

    Args:
        methods: {feature: name of its guidance method}.

    >>> recommended_scales({"malignancy": "contrast", "texture": "classifier"})
    {'malignancy': 1.0, 'texture': 2.0}
    """
    return {
        feature: SCALES_OF_FEATURES.get((feature, method), RECOMMENDED_SCALES[method])
        for feature, method in methods.items()
    }
