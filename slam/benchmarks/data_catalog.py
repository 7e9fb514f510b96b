"""Where the data of the suites are from, under which license, and what they must look like on disk.

Addresses are those that the authors or their tools name; none is mirrored here. What has no plain address (a form, a
login, YouTube) is only described.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_RAW = "https://raw.githubusercontent.com/"
_LOFTR = _RAW + "zju3dv/LoFTR/master/assets/"
_NOPOSPLAT = _RAW + "cvg/NoPoSplat/main/assets/"
_PI3 = _RAW + "yyfz/Pi3/evaluation/datasets/seq-id-maps/"
_TUM = "https://cvg.cit.tum.de/rgbd/dataset/freiburg1/"
_SEVEN_SCENES = "http://download.microsoft.com/download/2/8/5/28564B23-0828-408F-8631-23B1EFF1DAC8/"
_PGT = _RAW + "tsattler/visloc_pseudo_gt_limitations/main/pgt/sfm/7scenes/"
_CAMBRIDGE = "https://www.repository.cam.ac.uk/bitstream/handle/1810/"
_EUROC_PAGE = "https://www.research-collection.ethz.ch/entities/researchdata/bcaf173e-5dac-484b-bc37-faf97a594f1f"
_SCANNET_TERMS = "ScanNet terms of use: research only; http://www.scan-net.org"
_LISTS_ONLY = "that of the repository that holds the list; no images"


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file with an address.

    Attributes:
        name: below the folder of the data set.
        size_bytes, sha256: as published; 0 and empty where they are not.
    """

    name: str
    url: str
    size_bytes: int = 0
    sha256: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSet:
    """Data of a suite, or a part of them.

    Attributes:
        license: name and limits of the license.
        size: rough size in words.
        files: what can be fetched; empty if nothing has a plain address.
        layout: what must be where below `--data`, a line each.
        source: how to get what cannot be fetched.
    """

    title: str
    license: str
    size: str
    layout: tuple[str, ...]
    files: tuple[RemoteFile, ...] = ()
    source: str = ""


def _megadepth_list(name: str, size_bytes: int, sha256: str) -> RemoteFile:
    path = f"megadepth_test_1500_scene_info/{name}.npz"
    return RemoteFile(path, _LOFTR + path, size_bytes, sha256)


_PAIR_LISTS = {
    "scannet1500-pairs": DataSet(
        title="ScanNet1500: pairs and intrinsics of LoFTR, pairs of SuperGlue",
        license="LoFTR: Apache-2.0; SuperGlue: non-commercial research; no images",
        size="0.5 MB",
        files=(
            RemoteFile("test.npz", _LOFTR + "scannet_test_1500/test.npz", 71_687,
                       "b982b9c1f762e7d31af552ecc1ccf1a6add013197f74ec69c84a6deaa6f580ad"),
            RemoteFile("intrinsics.npz", _LOFTR + "scannet_test_1500/intrinsics.npz", 0,
                       "25ac102c69e2e4e2f0ab9c0d64f4da2b815e0901630768bdfde30080ced3605c"),
            RemoteFile("scannet_test_pairs_with_gt.txt",
                       _RAW + "magicleap/SuperGluePretrainedNetwork/master/assets/scannet_test_pairs_with_gt.txt",
                       468_995, "522ee01d4e18b5d0182ed934aa1cab9896183ee3321f1ba97fabc77867c412a2"),
        ),
        layout=("test.npz and intrinsics.npz beside scannet_test_1500/",),
    ),
    "megadepth1500-pairs": DataSet(
        title="MegaDepth1500: the five lists of LoFTR",
        license=_LISTS_ONLY,
        size="1.3 MB",
        files=(
            _megadepth_list("0015_0.1_0.3", 231_253,
                            "d441df1d380b2ed34449b944d9f13127e695542fa275098d38a6298835672f22"),
            _megadepth_list("0015_0.3_0.5", 231_253,
                            "5f34b5231d04a84d84378c671dd26854869663b5eafeae2ebaf624a279325139"),
            _megadepth_list("0022_0.1_0.3", 272_610,
                            "ba46e6b9ec291fc7271eb9741d5c75ca04b83d3d7281e049815de9cb9024f4d9"),
            _megadepth_list("0022_0.3_0.5", 272_610,
                            "1f4465da174b96deba61e5328886e4f2e687d34b890efca69e0c838736f8ae12"),
            _megadepth_list("0022_0.5_0.7", 272_610,
                            "684ae10f03001917c3ca0d12d441f372ce3c7e6637bd1277a3cda60df4207fe9"),
        ),
        layout=("megadepth_test_1500_scene_info/*.npz beside Undistorted_SfM/",),
    ),
    "re10k-pairs": DataSet(
        title="RealEstate10K: pairs of NoPoSplat, and Pi3's ten views",
        license=_LISTS_ONLY,
        size="1.5 MB",
        files=(
            RemoteFile("evaluation_index_re10k.json", _NOPOSPLAT + "evaluation_index_re10k.json", 1_178_183,
                       "4940dbd54f98dec8c0db6854f6ff97456856d437b85e3808fd3747ecca68c8fe"),
            RemoteFile("Re10K_relpose_seq-id-map_seed42.json", _PI3 + "Re10K_relpose_seq-id-map_seed42.json", 264_458,
                       "43af34c376d27d9a0caf5548ceec3a84d04217344bacc2c649f877f68326974b"),
        ),
        layout=("both files beside test/",),
    ),
    "acid-pairs": DataSet(
        title="ACID: pairs of NoPoSplat",
        license=_LISTS_ONLY,
        size="0.3 MB",
        files=(
            RemoteFile("evaluation_index_acid.json", _NOPOSPLAT + "evaluation_index_acid.json", 287_130,
                       "e3983f0e7d2ddda9627478139f6fc4bb1e166fa19a934c33d43bb613e5e1be89"),
        ),
        layout=("the file beside test/",),
    ),
    "co3d-pairs": DataSet(
        title="CO3Dv2: Pi3's ten views",
        license=_LISTS_ONLY,
        size="0.4 MB",
        files=(
            RemoteFile("CO3Dv2_relpose_seq-id-map_seed42.json", _PI3 + "CO3Dv2_relpose_seq-id-map_seed42.json", 390_028,
                       "5827b2b20666c107b4cda9d5ccee182cf65df940affda4c66faa18371887b2f9"),
        ),
        layout=("the file beside the categories",),
    ),
}  # fmt: skip

_PAIR_DATA = {
    "scannet1500": DataSet(
        title="ScanNet1500: images, and pairs in glue-factory's format",
        license=_SCANNET_TERMS,
        size="a few GB",
        files=(RemoteFile("scannet1500.zip", "https://cvg-data.inf.ethz.ch/scannet/scannet1500.zip"),),
        layout=(
            "pairs_calibrated.txt and the images it names; or",
            "test.npz and scannet_test_1500/sceneNNNN_NN/{color/N.jpg, pose/N.txt, intrinsic/intrinsic_depth.txt}; or",
            "scannet_test_pairs_with_gt.txt and either kind of image",
        ),
        source="Reloc3r's own copy is on the drive that its README names.",
    ),
    "megadepth1500": DataSet(
        title="MegaDepth1500: images, views and pairs in glue-factory's format",
        license="images from Flickr under their own licenses; see https://www.cs.cornell.edu/projects/megadepth",
        size="a few GB",
        files=(RemoteFile("megadepth1500.zip", "https://cvg-data.inf.ethz.ch/megadepth/megadepth1500.zip"),),
        layout=(
            "views.txt, pairs.txt and images/; or",
            "megadepth_test_pairs.txt, megadepth_meta_test.npz and the images they name; or",
            "megadepth_test_1500_scene_info/*.npz (slam data fetch megadepth1500-pairs) and Undistorted_SfM/",
        ),
    ),
    "re10k": DataSet(
        title="RealEstate10K in the chunks of pixelSplat",
        license="videos of YouTube; the list is CC BY 4.0; https://google.github.io/realestate10k",
        size="not known",
        layout=("test/index.json and test/*.torch", "evaluation_index_re10k.json (slam data fetch re10k-pairs)"),
        source="The repositories of pixelSplat and NoPoSplat say where the chunks are.",
    ),
    "re10k10": DataSet(
        title="RealEstate10K in ten views",
        license="as re10k",
        size="as re10k",
        layout=("as re10k, with Re10K_relpose_seq-id-map_seed42.json (slam data fetch re10k-pairs)",),
        source="As re10k.",
    ),
    "acid": DataSet(
        title="ACID in the chunks of pixelSplat",
        license="videos of YouTube; https://infinite-nature.github.io",
        size="not known",
        layout=("test/index.json and test/*.torch", "evaluation_index_acid.json (slam data fetch acid-pairs)"),
        source="The repositories of pixelSplat and NoPoSplat say where the chunks are.",
    ),
    "co3d": DataSet(
        title="CO3Dv2",
        license="CC BY-NC 4.0",
        size="5.5 TB; without masks, depths and point clouds less",
        layout=(
            "CATEGORY/frame_annotations.jgz and CATEGORY/SEQUENCE/images/*.jpg of the 41 seen categories",
            "CO3Dv2_relpose_seq-id-map_seed42.json (slam data fetch co3d-pairs)",
        ),
        source="The download script of https://github.com/facebookresearch/co3d fetches single categories.",
    ),
    "pairs": DataSet(
        title="Pairs of your own",
        license="yours",
        size="",
        layout=(
            "pairs.txt (or --pairs FILE) with lines 'name0 name1 T': T are the 12 or 16 numbers of the pose of",
            "camera 0 in camera 1, row by row (x1 = R x0 + t); SuperGlue's and glue-factory's lists are read too",
            "camera.yaml, if the list has no intrinsics",
        ),
        source="A list is a text file.",
    ),
}

_SCENES = ("chess", "fire", "heads", "office", "pumpkin", "redkitchen", "stairs")
_CAMBRIDGE_IDS = {
    "KingsCollege": 251342, "OldHospital": 251340, "StMarysChurch": 251294, "ShopFacade": 251336, "GreatCourt": 251291,
}  # fmt: skip
_LOCALIZATION_DATA = {
    "7scenes": DataSet(
        title="7-Scenes",
        license="Microsoft, non-commercial use; the license is in each download",
        size="1 to 9 GB a scene",
        layout=(
            "SCENE/{TrainSplit.txt, TestSplit.txt, seq-NN/frame-NNNNNN.color.png, .pose.txt}",
            "for SLAM: SCENE/seq-01",
        ),
        source=f"slam data fetch 7scenes-SCENE, with SCENE one of {', '.join(_SCENES)}.",
    ),
    **{
        f"7scenes-{scene}": DataSet(
            title=f"7-Scenes: {scene}",
            license="Microsoft, non-commercial use; the license is in the download",
            size="1 to 9 GB",
            files=(RemoteFile(f"{scene}.zip", f"{_SEVEN_SCENES}{scene}.zip"),),
            layout=(f"{scene}.zip and in it seq-NN.zip unpacked to {scene}/seq-NN",),
        )
        for scene in _SCENES
    },
    "7scenes-sfm": DataSet(
        title="7-Scenes: pseudo ground truth by structure from motion",
        license="as the repository tsattler/visloc_pseudo_gt_limitations says",
        size="5 MB",
        files=tuple(
            RemoteFile(f"pgt/sfm/7scenes/{scene}_{part}.txt", f"{_PGT}{scene}_{part}.txt")
            for scene in _SCENES
            for part in ("train", "test")
        ),
        layout=("pgt/sfm/7scenes/SCENE_{train,test}.txt beside the scenes",),
    ),
    "cambridge": DataSet(
        title="Cambridge Landmarks",
        license="research; see the page of each scene",
        size="0.2 to 6 GB a scene",
        layout=("SCENE/{dataset_train.txt, dataset_test.txt, reconstruction.nvm, seqN/frameNNNNN.png}",),
        source=f"slam data fetch cambridge-SCENE, with SCENE one of {', '.join(_CAMBRIDGE_IDS)}.",
    ),
    **{
        f"cambridge-{scene}": DataSet(
            title=f"Cambridge Landmarks: {scene}",
            license="research; see the page of the scene",
            size="0.2 to 6 GB",
            files=(RemoteFile(f"{scene}.zip", f"{_CAMBRIDGE}{number}/{scene}.zip"),),
            layout=(f"{scene}.zip unpacked to {scene}/",),
        )
        for scene, number in _CAMBRIDGE_IDS.items()
    },
}

_TUM_NAMES = ("360", "desk", "desk2", "floor", "plant", "room", "rpy", "teddy", "xyz")
_SLAM_DATA = {
    "tum": DataSet(
        title="TUM RGB-D, freiburg1",
        license="CC BY 4.0",
        size="0.35 to 1.3 GB a sequence",
        layout=("rgbd_dataset_freiburg1_NAME/{rgb.txt, rgb/, groundtruth.txt}",),
        source=f"slam data fetch tum-NAME, with NAME one of {', '.join(_TUM_NAMES)}.",
    ),
    **{
        f"tum-{name}": DataSet(
            title=f"TUM RGB-D: freiburg1_{name}",
            license="CC BY 4.0",
            size="0.35 to 1.3 GB",
            files=(RemoteFile(f"rgbd_dataset_freiburg1_{name}.tgz", f"{_TUM}rgbd_dataset_freiburg1_{name}.tgz"),),
            layout=(f"rgbd_dataset_freiburg1_{name}/{{rgb.txt, rgb/, groundtruth.txt}}",),
        )
        for name in _TUM_NAMES
    },
    "euroc": DataSet(
        title="EuRoC MAV",
        license="research",
        size="1 to 2.5 GB a sequence",
        layout=(
            "MH_01_easy/mav0/{cam0/{data.csv, data/, sensor.yaml}, state_groundtruth_estimate0/data.csv}, and so on",
        ),
        source="By hand from the research collection of ETH Zurich: " + _EUROC_PAGE,
    ),
    "kitti": DataSet(
        title="KITTI odometry",
        license="CC BY-NC-SA 3.0",
        size="22 GB gray, 65 GB color",
        layout=("sequences/NN/{calib.txt, times.txt, image_2/ or image_0/}", "poses/NN.txt"),
        source="After registration: https://www.cvlibs.net/datasets/kitti/eval_odometry.php.",
    ),
    "icl": DataSet(
        title="ICL-NUIM, TUM-compatible",
        license="CC BY 3.0",
        size="0.3 to 1 GB a sequence",
        layout=("NAME/{rgb/, associations.txt, *.gt.freiburg}",),
        source="https://www.doc.ic.ac.uk/~ahanda/VaFRIC/iclnuim.html",
    ),
    "folder": DataSet(
        title="Sequences of your own",
        license="yours",
        size="",
        layout=("any folders in the layouts of docs/datasets.md, also nested",),
        source="Sequences with a groundtruth.txt are scored, others only tracked.",
    ),
}

CATALOG: Mapping[str, DataSet] = {
    **_PAIR_DATA,
    **_PAIR_LISTS,
    **_LOCALIZATION_DATA,
    "7scenes-localization": _LOCALIZATION_DATA["7scenes"],
    **_SLAM_DATA,
}
