"""The suites by name; each kind is imported when it is opened."""

from __future__ import annotations

from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.suite import BenchmarkRequest, Suite

PAIRS = ("scannet1500", "megadepth1500", "re10k", "acid", "co3d", "re10k10", "pairs")
LOCALIZATION = ("7scenes-localization", "cambridge")
SLAM = ("tum", "euroc", "kitti", "7scenes", "icl", "folder")
SUITES = (*PAIRS, *LOCALIZATION, *SLAM)


def open_suite(request: BenchmarkRequest) -> Suite:
    """The suite of a request.

    Raises:
        UserError: there is no such suite or folder, or its lists cannot be read.
    """
    if request.suite not in SUITES:
        raise BenchmarkError(f"no suite {request.suite}; there are {', '.join(SUITES)}")
    if not request.root.is_dir():
        raise BenchmarkError(
            f"--data {request.data}: no such folder; slam data describe {request.suite} says where the data are from"
        )
    if request.suite in PAIRS:
        from slam.benchmarks.pair_suite import PairSuite

        return PairSuite(request)
    if request.suite in LOCALIZATION:
        from slam.benchmarks.localization_suite import LocalizationSuite

        return LocalizationSuite(request)
    from slam.benchmarks.slam_suite import SlamSuite

    return SlamSuite(request)
