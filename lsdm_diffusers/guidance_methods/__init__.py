"""The methods that steer nodules while sampling: classifiers, contrast of labels, contrast of ratings.

Each is a `GuidanceMethod`: it settles what no step changes when it is made, and then guides the U-Net's output of each
step. Several methods may guide one call, each for its own features.
"""
