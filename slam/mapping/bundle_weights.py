"""Weights of bundle adjustment: the robust kernels, and the standard deviations of the priors.

The standard deviation of an observation is the setting `tracks.noise_px`; those of the pair estimates are their own.
"""

from __future__ import annotations

# Thresholds of the Huber kernel of observations and of the Cauchy kernel of pair estimates, in standard deviations, for
# 95 % efficiency on normal errors. A pair estimate may be wrong by tens of its standard deviations; with a Huber kernel
# such pairs, which are many, move the map.
HUBER_K = 1.345
CAUCHY_C = 2.385
# Relative standard deviation of the range prior that fixes the scale. The scale is unobservable, so a weak prior fixes
# it. A tight one makes every linear step violate it, and Levenberg-Marquardt fails in its first iteration.
SCALE_SIGMA = 1e-2
# Divisor of the standard deviations of the priors of the focal length and the principal point. The errors of the
# observations of one track are correlated, so they determine the camera less well by this factor than independent ones.
FOCAL_PRIOR_WEIGHT = 5.0
WEAK_POINT_SIGMA = 100.0  # standard deviation of the weak prior of a landmark, as a multiple of the map's size
