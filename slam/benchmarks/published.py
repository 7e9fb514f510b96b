"""Published results, shown beside ours with their sources. Nothing here was measured by this project."""

from __future__ import annotations

from collections.abc import Sequence

from slam.benchmarks.suite import Cell, Table

_AUC = ("method", "AUC@5", "AUC@10", "AUC@20", "direction error")
_RELOC3R_PAPER = "Reloc3r: arXiv 2412.08376, table 3. "
_OTHERS = "RoMa, DUSt3R, MASt3R, NoPoSplat: as listed there. "
_NO_SCRIPT = "Its script and pairs for this data set are not published (ffrivera0/reloc3r, issue 23). "
_FAIRNESS = "Rows of matchers use known intrinsics and the folded direction error; Reloc3r's use neither."


def _auc(method: str, values: Sequence[Cell], convention: str) -> list[Cell]:
    return [method, *values, convention]


def _auc_table(name: str, rows: Sequence[tuple[str, Sequence[Cell], str]], sources: str) -> Table:
    return Table(f"Published: {name}, %", _AUC, [_auc(*row) for row in rows], sources + _FAIRNESS)


SCANNET1500 = _auc_table(
    "ScanNet1500",
    [
        ("Reloc3r-512", (34.79, 58.37, 75.56), "plain"),
        ("Reloc3r-224", (28.34, 52.60, 71.56), "plain"),
        ("Reloc-VGGT", (36.35, 58.62, 75.90), "not said"),
        ("NoPoSplat", (31.80, 53.80, 71.70), "folded"),
        ("RoMa", (28.90, 50.40, 68.30), "folded"),
        ("MASt3R", (28.01, 50.24, 68.83), "not said"),
        ("DUSt3R", (23.81, 45.91, 65.57), "not said"),
        ("Efficient LoFTR", (19.20, 37.00, 53.60), "folded"),
        ("ExReNet", (2.30, 10.71, 26.13), "not said"),
        ("Map-free (regress)", (1.84, 8.75, 25.33), "not said"),
    ],
    _RELOC3R_PAPER + _OTHERS + "Reloc-VGGT: arXiv 2512.21883. ",
)
MEGADEPTH1500 = _auc_table(
    "MegaDepth1500",
    [
        ("Reloc3r-512", (49.60, 67.9, 81.2), "plain"),
        ("RoMa", (62.6, 76.7, 86.3), "folded"),
        ("MASt3R", (42.4, 61.5, 76.9), "not said"),
        ("GeLoc3r", (50.45, None, None), "not said"),
    ],
    "Reloc3r: arXiv 2412.08376, supplement. GeLoc3r: arXiv 2509.23038. ",
)
RE10K = _auc_table(
    "RealEstate10K, two views",
    [
        ("Reloc3r-512", (66.70, 80.2, 88.39), "not published"),
        ("Reloc3r-224", (None, None, 84.71), "not published"),
        ("NoPoSplat", (None, None, 87.70), "folded"),
        ("MASt3R", (63.5, 76.4, 84.50), "not said"),
        ("RoMa", (54.6, 69.8, 79.70), "folded"),
        ("DUSt3R", (None, None, 70.43), "not said"),
    ],
    _RELOC3R_PAPER
    + "Its script and pairs for this data set are not published (ffrivera0/reloc3r, issue 23). "
    + _OTHERS,
)
ACID = _auc_table(
    "ACID, two views",
    [
        ("Reloc3r-512", (38.2, 56.4, 70.34), "not published"),
        ("Reloc3r-224", (None, None, 62.54), "not published"),
        ("NoPoSplat", (None, None, 72.80), "folded"),
        ("MASt3R", (52.1, 64.5, 73.61), "not said"),
        ("RoMa", (46.3, 58.8, 68.90), "folded"),
        ("DUSt3R", (None, None, 49.70), "not said"),
    ],
    _RELOC3R_PAPER
    + "Its script and pairs for this data set are not published (ffrivera0/reloc3r, issue 23). "
    + _OTHERS,
)
CO3D = Table(
    "Published: CO3Dv2, ten views, %",
    ("method", "RRA@15", "RTA@15", "mAA@30"),
    [
        ("Reloc3r-512", 95.8, 93.7, 82.9),
        ("MASt3R", 94.6, 91.9, 81.1),
        ("DUSt3R + PnP", 94.3, 88.4, 77.2),
    ],
    "arXiv 2412.08376, table 2. Which ten images, and whether pairs count in one or both directions, is not published.",
)
SEVEN_SCENES_LOCALIZATION = Table(
    "Published: 7-Scenes, medians m / deg, poses of KinectFusion",
    ("method", "chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs", "mean"),
    [
        ("Reloc3r-512, NetVLAD top 10", "0.03/0.88", "0.03/0.81", "0.01/0.95", "0.04/0.88", "0.06/1.10 (u)",
         "0.04/1.26 (u)", "0.07/1.26", "0.04/1.02"),
        ("Reloc3r-224, NetVLAD top 10", "0.03/0.99", "0.04/1.13", "0.02/1.23", "0.05/0.88", "0.07/1.14 (u)",
         "0.05/1.23 (u)", "0.12/2.25", "0.05/1.26"),
        ("Reloc-VGGT", "", "", "", "", "", "", "", "0.031/0.896"),
        ("ExReNet (SUNCG)", "", "", "", "", "", "", "", "0.08/2.52"),
        ("Map-free (regress)", "", "", "", "", "", "", "", "0.13/3.72"),
        ("hloc SuperPoint + SuperGlue", "0.02/0.84", "0.02/0.93", "0.01/0.74", "0.03/0.92", "0.05/1.27", "0.04/1.40",
         "0.05/1.47", ""),
        ("ACE (trained per scene)", "", "", "", "", "", "", "", "0.028/0.93"),
        ("marepo (trained per scene)", "", "", "", "", "", "", "", "0.039/1.68"),
    ],
    "Reloc3r and others: arXiv 2412.08376, table 4; (u): recalled, not verified. hloc: cvg/Hierarchical-Localization, "
    "which reports centimeters.",
)  # fmt: skip
CAMBRIDGE = Table(
    "Published: Cambridge Landmarks, medians m / deg",
    ("method", "GreatCourt", "KingsCollege", "OldHospital", "ShopFacade", "StMarysChurch", "mean of 4", "mean of 5"),
    [
        ("Reloc3r-512, NetVLAD top 10", "1.22/0.73", "0.42/0.36", "0.62/0.55", "0.13/0.58", "0.34/0.58", "0.38/0.52",
         "0.55/0.56"),
        ("Reloc3r-224, NetVLAD top 10", "1.71/0.94", "0.47/0.41", "0.87/0.66", "0.18/0.53", "0.41/0.73", "",
         "0.73/0.65"),
        ("Reloc-VGGT", "", "", "", "", "", "0.32/0.37", ""),
        ("DUSt3R-512 top 20", "", "", "", "", "", "0.16/0.24", ""),
        ("hloc SuperPoint + SuperGlue", "0.17/0.11", "0.12/0.21", "0.14/0.30", "0.04/0.19", "0.07/0.22", "", ""),
    ],
    "arXiv 2412.08376, table 5. Mean of 4 leaves out GreatCourt. Whether rows of other methods average four or five "
    "scenes is not always said.",
)  # fmt: skip
_ATE = ("method", "mean ATE Sim(3), m", "poses scored", "intrinsics")
TUM = Table(
    "Published: TUM RGB-D freiburg1, nine sequences",
    _ATE,
    [
        ("MASt3R-SLAM", 0.030, "keyframes, every 2nd frame fed", "given"),
        ("GO-SLAM", 0.035, "not checked", "given"),
        ("DROID-SLAM", 0.038, "every frame fed (every 2nd)", "given"),
        ("VGGT-SLAM 2.0", 0.041, "keyframes", "none"),
        ("ViSTA-SLAM", 0.052, "keyframes, every 3rd frame fed", "none"),
        ("VGGT-SLAM", 0.053, "keyframes; 0.053 to 0.061 between runs", "none"),
        ("DPV-SLAM++", 0.054, "all frames, median of 5", "given"),
        ("MASt3R-SLAM*", 0.060, "keyframes, every 2nd frame fed", "none"),
    ],
    "MASt3R-SLAM: arXiv 2412.12392; DROID-SLAM: 2108.10869; DPV-SLAM: 2408.01654; ViSTA-SLAM: 2509.01584; "
    "VGGT-SLAM 2.0: 2601.19887.",
)
SEVEN_SCENES_SLAM = Table(
    "Published: 7-Scenes, first sequence of each scene, poses of KinectFusion",
    _ATE,
    [
        ("MASt3R-SLAM", 0.047, "keyframes, every 2nd frame fed", "given"),
        ("DROID-SLAM", 0.049, "every frame fed", "given"),
        ("ViSTA-SLAM", 0.055, "keyframes, every 5th frame fed", "none"),
        ("MASt3R-SLAM*", 0.066, "keyframes, every 2nd frame fed", "none"),
        ("VGGT-SLAM", 0.070, "keyframes", "none"),
    ],
    "Sources as for TUM RGB-D.",
)
EUROC = Table(
    "Published: EuRoC, eleven sequences, left camera alone",
    _ATE,
    [
        ("DROID-SLAM", 0.022, "all frames", "given"),
        ("DPV-SLAM", 0.024, "every frame fed (every 2nd)", "given"),
        ("MASt3R-SLAM", 0.041, "keyframes", "given"),
        ("MASt3R-SLAM*", 0.164, "keyframes, images undistorted", "none"),
    ],
    "Their positions are those of the body or of the camera, centimeters apart and not compensated. Ours: the camera.",
)
KITTI = Table(
    "Published: KITTI odometry 00 to 10",
    _ATE,
    [
        ("LDSO", 22.4, "keyframes", "given"),
        ("DPV-SLAM++", 25.8, "every 2nd frame fed, median of 5", "given"),
        ("VGGT-Long", 26.4, "not checked", "none"),
        ("ORB-SLAM2", 54.8, "not checked", "given"),
    ],
    "DPV-SLAM: arXiv 2408.01654.",
)
