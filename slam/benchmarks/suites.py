"""The suites by name."""

from __future__ import annotations

from slam.benchmarks.benchmark_error import BenchmarkError
from slam.benchmarks.localization_suite import LOCALIZATION_SUITES, LocalizationSuite
from slam.benchmarks.pair_suite import PAIR_SUITES, PairSuite
from slam.benchmarks.slam_suite import SLAM_SUITES, SlamSuite
from slam.benchmarks.suite import BenchmarkRequest, Suite

SUITES = (*PAIR_SUITES, *LOCALIZATION_SUITES, *SLAM_SUITES)


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
    if request.suite in PAIR_SUITES:
        return PairSuite(request)
    if request.suite in LOCALIZATION_SUITES:
        return LocalizationSuite(request)
    return SlamSuite(request)
