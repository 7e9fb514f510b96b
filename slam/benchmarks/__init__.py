"""Accuracy on public benchmarks: relative poses of pairs, visual localization, SLAM. The verb `slam benchmark`."""
