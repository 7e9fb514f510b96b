"""Miniatures of public data sets: the views of a rendered room, or of an oracle world, written in the public layouts.

The views are those of the bundled sequence, which `sequences/render_room.py` rendered with exact poses. A data set with
a published camera gets the same view through that camera: of a longer focal length, so that nothing is missing.
"""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import RigidTransform, Rotation

from relocalizer.camera import Camera, load_camera
from relocalizer.geometry import rotation_matrix, translation_of
from relocalizer.images import Image
from relocalizer.interfaces import CalibratedImage, NoEstimate, PairEstimate
from slam.input.dataset_calibrations import ICL_NUIM_CAMERA, SEVEN_SCENES_CAMERA, TUM_CAMERAS

ROOM = Path(__file__).parents[1] / "sequences" / "room_loop"
Floats = NDArray[np.float64]
FLIP_Y = np.diag([1.0, -1.0, 1.0, 1.0])
FX, FY, CX, CY, DISTORTION = TUM_CAMERAS["1"]
TUM_CAMERA = Camera(width=640, height=480, fx=FX, fy=FY, cx=CX, cy=CY, model="radtan", distortion=DISTORTION)
SMALL = Camera(width=640, height=360, fx=480.0, fy=480.0, cx=319.5, cy=179.5)


@dataclass(frozen=True, eq=False)
class View:
    """An image (H, W, 3) RGB, its camera and its pose (4, 4)."""

    image: Image
    camera: Camera
    world_from_cam: Floats

    @property
    def cam_from_world(self) -> Floats:
        return np.linalg.inv(self.world_from_cam)

    def through(self, camera: Camera) -> View:
        """The same view through another camera, whose field of view is inside that of this one."""
        x, y = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        pixels = np.stack([x.ravel(), y.ravel()], axis=1).astype(np.float64)
        undistorted = cv2.undistortPoints(pixels[:, None], camera.matrix, np.array(camera.distortion or (0.0,) * 4))
        rays = np.column_stack([undistorted.reshape(-1, 2), np.ones(len(pixels))])
        found = self.camera.project(rays).astype(np.float32).reshape(camera.height, camera.width, 2)
        image = cv2.remap(self.image, found[..., 0], found[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        return View(np.asarray(image, dtype=np.uint8), camera, self.world_from_cam)


@cache
def room_views(count: int, step: int = 4, start: int = 0) -> tuple[View, ...]:
    """`count` views of the bundled room, `step` frames apart."""
    camera = load_camera(ROOM / "camera.yaml")
    rows = np.loadtxt(ROOM / "groundtruth.txt")
    video = cv2.VideoCapture(str(ROOM / "video.mp4"))
    views = []
    for k in range(start + (count - 1) * step + 1):
        good, image = video.read()
        assert good
        if k >= start and (k - start) % step == 0:
            pose = np.eye(4)
            pose[:3, :3], pose[:3, 3] = Rotation.from_quat(rows[k, 4:]).as_matrix(), rows[k, 1:4]
            views.append(View(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8), camera, pose))
    return tuple(views)


class ThumbnailOracle:
    """The true relative pose of images that it knows by their thumbnails, in place of a pair predictor."""

    name = "thumbnails"

    def __init__(self, views: Sequence[View]) -> None:
        self._poses = [RigidTransform.from_matrix(view.world_from_cam) for view in views]
        self._thumbnails = np.array([thumbnail(view.image) for view in views])

    def encode(self, views: Sequence[CalibratedImage]) -> list[int]:
        return [self._index(view.image) for view in views]

    def _index(self, image: Image) -> int:
        return int(np.abs(self._thumbnails - thumbnail(image)).mean(axis=(1, 2)).argmin())

    def relate(self, pairs: Sequence[tuple[int, int]]) -> list[PairEstimate | NoEstimate]:
        return [self._relate(i, j) for i, j in pairs]

    def _relate(self, i: int, j: int) -> PairEstimate:
        i_from_j = self._poses[i].inv() * self._poses[j]
        t = translation_of(i_from_j)
        return PairEstimate(
            i_from_j_rotation=rotation_matrix(i_from_j),
            i_from_j_direction=t / np.linalg.norm(t),
            confidence=1.0,
            rotation_sigma_rad=1e-4,
            direction_sigma_rad=1e-4,
        )

    def describe(self, encoded: int) -> NDArray[np.float32]:
        near = np.exp(-np.abs(np.arange(len(self._poses)) - encoded) / 3.0)
        return np.asarray(near / np.linalg.norm(near), dtype=np.float32)


def thumbnail(image: Image) -> Floats:
    """A small gray version of an image's middle, without its brightness."""
    height, width = image.shape[:2]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    gray = cv2.cvtColor(image[top : top + side, left : left + side], cv2.COLOR_RGB2GRAY)
    small = cv2.resize(gray, (24, 24), interpolation=cv2.INTER_AREA).astype(np.float64)
    return small - small.mean()


def write_image(path: Path, image: Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = [cv2.IMWRITE_JPEG_QUALITY, 97] if path.suffix == ".jpg" else []
    cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def numbers(values: Floats) -> str:
    return " ".join(f"{value:.12g}" for value in np.asarray(values).ravel())


def matrix_text(matrix: Floats) -> str:
    return "\n".join(numbers(row) for row in matrix) + "\n"


def quaternion_xyzw(rotation: Floats) -> Floats:
    return np.asarray(Rotation.from_matrix(rotation).as_quat())


def quaternion_wxyz(rotation: Floats) -> Floats:
    return np.roll(quaternion_xyzw(rotation), 1)


def neighbors(count: int) -> list[tuple[int, int]]:
    return [(k, k + 1) for k in range(count - 1)]


# --- pairs ----------------------------------------------------------------------------------------------


def scannet_official(root: Path, views: Sequence[View]) -> list[View]:
    """LoFTR's test.npz beside the official folders; two scenes, and pairs of neighbors in each."""
    half = len(views) // 2
    names, poses, written = [], [], []
    for scene, own in ((707, views[:half]), (708, views[half:])):
        folder = root / "scannet_test_1500" / f"scene{scene:04d}_00"
        for k, view in enumerate(own):
            written.append(view)
            write_image(folder / "color" / f"{15 * k}.jpg", view.image)
            write(folder / "pose" / f"{15 * k}.txt", matrix_text(view.world_from_cam))
        write(folder / "intrinsic" / "intrinsic_depth.txt", matrix_text(_square(own[0].camera.matrix)))
        for i, j in neighbors(len(own)):
            names.append((scene, 0, 15 * i, 15 * j))
            poses.append((own[j].cam_from_world @ own[i].world_from_cam)[:3].ravel())
    np.savez(root / "test.npz", name=np.array(names, np.uint16), rel_pose=np.array(poses, np.float32))
    return written


def _square(K: Floats) -> Floats:
    square = np.eye(4)
    square[:3, :3] = K
    return square


def scannet_text(root: Path, views: Sequence[View], *, glue_factory: bool = False) -> list[View]:
    """SuperGlue's list, or glue-factory's."""
    lines = []
    for k, view in enumerate(views):
        write_image(root / f"scene0707_00/frame-{15 * k:06d}.jpg", view.image)
    for i, j in neighbors(len(views)):
        K = numbers(views[i].camera.matrix)
        pose = views[j].cam_from_world @ views[i].world_from_cam
        names = [f"scene0707_00/frame-{15 * k:06d}.jpg" for k in (i, j)]
        turns = [] if glue_factory else ["0", "0"]
        lines.append(" ".join([*names, *turns, K, K, numbers(pose[:3] if glue_factory else pose)]))
    name = "pairs_calibrated.txt" if glue_factory else "scannet_test_pairs_with_gt.txt"
    write(root / name, "\n".join(lines) + "\n")
    return list(views)


def megadepth_loftr(root: Path, views: Sequence[View]) -> list[View]:
    """Two of LoFTR's pickled lists."""
    names = [f"Undistorted_SfM/0015/images/{k}.jpg" for k in range(len(views))]
    for name, view in zip(names, views, strict=True):
        write_image(root / name, view.image)
    for number, pairs in (("0015_0.1_0.3", neighbors(len(views))[::2]), ("0015_0.3_0.5", neighbors(len(views))[1::2])):
        data = {
            "image_paths": np.array([*names, None], dtype=object),
            "depth_paths": np.array([None] * (len(names) + 1), dtype=object),
            "intrinsics": [*(view.camera.matrix for view in views), None],
            "poses": [*(view.cam_from_world for view in views), None],
            "pair_infos": [((i, j), np.float64(0.2), np.zeros((4, 2))) for i, j in pairs],
        }
        folder = root / "megadepth_test_1500_scene_info"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.npz").write_bytes(pickle.dumps(data, protocol=4))
    return list(views)


def megadepth_official(root: Path, views: Sequence[View]) -> list[View]:
    """Reloc3r's list, and its archive of pickled dictionaries."""
    names = [f"Undistorted_SfM/0022/images/{k}.jpg" for k in range(len(views))]
    meta = {}
    for name, view in zip(names, views, strict=True):
        write_image(root / name, view.image)
        entry = {"intrinsic": view.camera.matrix, "pose": view.cam_from_world}
        meta[name] = np.array(entry, dtype=object)
    np.savez(root / "megadepth_meta_test.npz", **meta)
    pairs = [f"{names[i]} {names[j]}" for i, j in neighbors(len(views))]
    write(root / "megadepth_test_pairs.txt", "\n".join(pairs) + "\n")
    return list(views)


def megadepth_glue_factory(root: Path, views: Sequence[View]) -> list[View]:
    """views.txt and pairs.txt."""
    lines = []
    for k, view in enumerate(views):
        write_image(root / f"images/{k}.jpg", view.image)
        pose, c = view.cam_from_world, view.camera
        camera = f"PINHOLE {c.width} {c.height} {c.fx} {c.fy} {c.cx + 0.5} {c.cy + 0.5}"
        lines.append(f"{k}.jpg {numbers(pose[:3, :3])} {numbers(pose[:3, 3])} {camera}")
    write(root / "views.txt", "\n".join(lines) + "\n")
    write(root / "pairs.txt", "".join(f"{i}.jpg {j}.jpg\n" for i, j in neighbors(len(views))))
    return list(views)


def video_chunks(root: Path, views: Sequence[View], index: str) -> list[View]:
    """pixelSplat's chunks with two scenes, NoPoSplat's index of two views, and Pi3's map of ten views."""
    small = [view.through(SMALL) for view in views]
    half = len(small) // 2
    scenes = {"aaaa": small[:half], "bbbb": small[half:]}
    (root / "test").mkdir(parents=True, exist_ok=True)
    chunk = [
        {
            "url": "",
            "timestamps": torch.arange(len(own)),
            "cameras": torch.tensor(np.array([_camera_numbers(view) for view in own])),
            "images": [torch.tensor(_jpeg(view.image)) for view in own],
            "key": key,
        }
        for key, own in scenes.items()
    ]
    torch.save(chunk, root / "test" / "000000.torch")
    write(root / "test" / "index.json", json.dumps(dict.fromkeys(scenes, "000000.torch")))
    pairs = {
        "aaaa": {"context": [0, 2], "target": [1], "overlap": 0.4},
        "bbbb": {"context": [0, half - 1], "target": [1], "overlap": 0.2},
        "cccc": None,
    }
    write(root / index, json.dumps(pairs))
    ten = {key: [k % half for k in range(10)] for key in scenes} if half == 10 else {"aaaa": [0] * 10}
    write(root / "Re10K_relpose_seq-id-map_seed42.json", json.dumps(ten))
    return small


def _camera_numbers(view: View) -> Floats:
    c = view.camera
    head = [c.fx / c.width, c.fy / c.height, (c.cx + 0.5) / c.width, (c.cy + 0.5) / c.height, 0.0, 0.0]
    return np.array([*head, *view.cam_from_world[:3].ravel()])


def _jpeg(image: Image) -> NDArray[np.uint8]:
    good, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 97])
    assert good
    return np.asarray(data, np.uint8).ravel()


def co3d(root: Path, views: Sequence[View]) -> list[View]:
    """Annotations of two categories with a sequence each, in both of PyTorch3D's image coordinates; ten views each."""
    half = len(views) // 2
    for category, own, kind in (
        ("apple", views[:half], "ndc_isotropic"),
        ("chair", views[half:], "ndc_norm_image_bounds"),
    ):
        frames = []
        for k, view in enumerate(own):
            name = f"{category}/{category}_1/images/frame{k + 1:06d}.jpg"
            write_image(root / name, view.image)
            frames.append(
                {
                    "sequence_name": f"{category}_1",
                    "frame_number": k + 1,
                    "image": {"path": name, "size": [view.camera.height, view.camera.width]},
                    "viewpoint": _pytorch3d(view, kind),
                }
            )
        (root / category / "frame_annotations.jgz").write_bytes(gzip.compress(json.dumps(frames).encode()))
    positions = {f"{category}_1": list(range(10)) for category in ("apple", "chair")}
    write(root / "CO3Dv2_relpose_seq-id-map_seed42.json", json.dumps(positions))
    return list(views)


def _pytorch3d(view: View, kind: str) -> dict[str, object]:
    c, pose = view.camera, view.cam_from_world
    half = np.array([c.width, c.height]) / 2
    unit = half if kind == "ndc_norm_image_bounds" else np.full(2, half.min())
    turned = np.diag([-1.0, -1.0, 1.0])
    return {
        "R": (turned @ pose[:3, :3]).T.tolist(),
        "T": (turned @ pose[:3, 3]).tolist(),
        "focal_length": (np.array([c.fx, c.fy]) / unit).tolist(),
        "principal_point": ((half - [c.cx + 0.5, c.cy + 0.5]) / unit).tolist(),
        "intrinsics_format": kind,
    }


def own_list(root: Path, views: Sequence[View]) -> list[View]:
    """pairs.txt of `name name T`, and camera.yaml."""
    for k, view in enumerate(views):
        write_image(root / f"images/{k}.png", view.image)
    write(root / "camera.yaml", views[0].camera.to_yaml())
    lines = [
        f"images/{i}.png images/{j}.png {numbers((views[j].cam_from_world @ views[i].world_from_cam)[:3])}"
        for i, j in neighbors(len(views))
    ]
    write(root / "pairs.txt", "# own pairs\n" + "\n".join(lines) + "\n")
    return list(views)


# --- localization ---------------------------------------------------------------------------------------


def seven_scenes(root: Path, views: Sequence[View], scene: str = "chess") -> list[View]:
    """A scene with a database sequence of the even views, a query sequence of the odd ones, and pseudo ground truth."""
    seen = [view.through(SEVEN_SCENES_CAMERA) for view in views]
    for sequence, part, own in ((1, "train", seen[::2]), (2, "test", seen[1::2])):
        lines = []
        for k, view in enumerate(own):
            name = f"seq-{sequence:02d}/frame-{k:06d}"
            write_image(root / scene / f"{name}.color.png", view.image)
            write(root / scene / f"{name}.pose.txt", matrix_text(view.world_from_cam))
            pose = view.cam_from_world
            turned = numbers(quaternion_wxyz(pose[:3, :3]))
            lines.append(f"{name}.color.png {turned} {numbers(pose[:3, 3])} {view.camera.fx}")
        write(root / "pgt" / "sfm" / "7scenes" / f"{scene}_{part}.txt", "\n".join(lines) + "\n")
    write(root / scene / "TrainSplit.txt", "sequence1\n")
    write(root / scene / "TestSplit.txt", "sequence2\n")
    return seen


def cambridge(root: Path, views: Sequence[View], scene: str = "ShopFacade") -> list[View]:
    """A scene with its lists, and the poses in reconstruction.nvm; the last query is not in it."""
    header = "Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n"
    rows, images = {"dataset_train.txt": header, "dataset_test.txt": header}, []
    for k, view in enumerate(views):
        file = "dataset_test.txt" if k % 2 else "dataset_train.txt"
        name = f"seq{1 if k % 2 else 2}/frame{k + 1:05d}"
        write_image(root / scene / f"{name}.png", view.image)
        turned, center = numbers(quaternion_wxyz(view.cam_from_world[:3, :3])), numbers(view.world_from_cam[:3, 3])
        rows[file] += f"{name}.png {center} {turned}\n"
        images.append(f"{name}.jpg\t{view.camera.fx} {turned} {center} 0 0")
    rows["dataset_test.txt"] += "seq1/frame00073.png 0 0 0 1 0 0 0\n"
    for file, text in rows.items():
        write(root / scene / file, text)
    write(root / scene / "reconstruction.nvm", f"NVM_V3 \n\n{len(images)}\n" + "\n".join(images) + "\n0\n")
    return list(views)


# --- SLAM -----------------------------------------------------------------------------------------------


def tum_rows(times: Sequence[str], poses: Sequence[Floats]) -> str:
    rows = [f"{t} {numbers(p[:3, 3])} {numbers(quaternion_xyzw(p[:3, :3]))}" for t, p in zip(times, poses, strict=True)]
    return "# timestamp tx ty tz qx qy qz qw\n" + "\n".join(rows) + "\n"


def tum(root: Path, views: Sequence[View], name: str = "xyz", *, with_camera: bool = False) -> Path:
    """A sequence of freiburg1: through its distorted lens, or with its own camera beside it."""
    folder = root / f"rgbd_dataset_freiburg1_{name}"
    times = [f"{1305031102.175304 + k / 30:.6f}" for k in range(len(views))]
    for time, view in zip(times, views, strict=True):
        write_image(folder / "rgb" / f"{time}.png", view.image if with_camera else view.through(TUM_CAMERA).image)
    lines = "".join(f"{time} rgb/{time}.png\n" for time in times)
    write(folder / "rgb.txt", f"# color images\n# file: 'rgbd_dataset_freiburg1_{name}.bag'\n{lines}")
    write(folder / "groundtruth.txt", tum_rows(times, [view.world_from_cam for view in views]))
    if with_camera:
        write(folder / "camera.yaml", views[0].camera.to_yaml())
    return folder


def euroc(root: Path, views: Sequence[View], name: str = "MH_01_easy") -> Path:
    """A sequence whose body is a hand's breadth from the camera."""
    mav = root / name / "mav0"
    body_from_cam = np.eye(4)
    body_from_cam[:3, :3] = Rotation.from_euler("z", 90, degrees=True).as_matrix()
    body_from_cam[:3, 3] = (-0.02, -0.06, 0.01)
    images, truth = "#timestamp [ns],filename\n", "#timestamp, p_x, p_y, p_z, q_w, q_x, q_y, q_z\n"
    for k, view in enumerate(views):
        stamp = 1403636579763555584 + k * 50_000_000
        write_image(mav / "cam0" / "data" / f"{stamp}.png", view.image)
        images += f"{stamp},{stamp}.png\n"
        body = view.world_from_cam @ np.linalg.inv(body_from_cam)
        values = [*body[:3, 3], *quaternion_wxyz(body[:3, :3])]
        truth += f"{stamp}," + ",".join(f"{value:.12g}" for value in values) + "\n"
    c = views[0].camera
    write(mav / "cam0" / "data.csv", images)
    write(mav / "state_groundtruth_estimate0" / "data.csv", truth)
    write(
        mav / "cam0" / "sensor.yaml",
        "sensor_type: camera\nT_BS:\n  cols: 4\n  rows: 4\n"
        f"  data: [{', '.join(f'{v:.12g}' for v in body_from_cam.ravel())}]\n"
        f"resolution: [{c.width}, {c.height}]\ncamera_model: pinhole\nintrinsics: [{c.fx}, {c.fy}, {c.cx}, {c.cy}]\n"
        "distortion_model: radial-tangential\ndistortion_coefficients: [0.0, 0.0, 0.0, 0.0]\n",
    )
    return root / name


def kitti(root: Path, views: Sequence[View], name: str = "07") -> Path:
    """A sequence of the odometry benchmark, with a camera beside camera 0."""
    folder = root / "sequences" / name
    K = views[0].camera.matrix
    moved = np.column_stack([K, K @ [0.06, 0.0, 0.0]])  # camera 2 is 6 cm to the left of camera 0
    cam0_from_cam2 = np.eye(4)
    cam0_from_cam2[0, 3] = -0.06
    for k, view in enumerate(views):
        write_image(folder / "image_2" / f"{k:06d}.png", view.image)
    projections = {"P0": np.column_stack([K, np.zeros(3)]), "P2": moved}
    write(folder / "calib.txt", "".join(f"{key}: {numbers(P)}\n" for key, P in projections.items()))
    write(folder / "times.txt", "".join(f"{k * 0.1:.6e}\n" for k in range(len(views))))
    poses = [view.world_from_cam @ np.linalg.inv(cam0_from_cam2) for view in views]
    write(root / "poses" / f"{name}.txt", "".join(numbers(pose[:3]) + "\n" for pose in poses))
    return folder


def seven_scenes_sequence(root: Path, views: Sequence[View], scene: str = "chess") -> Path:
    """The first sequence of a scene."""
    folder = root / scene / "seq-01"
    for k, view in enumerate(views):
        shown = view if view.camera == SEVEN_SCENES_CAMERA else view.through(SEVEN_SCENES_CAMERA)
        write_image(folder / f"frame-{k:06d}.color.png", shown.image)
        write(folder / f"frame-{k:06d}.pose.txt", matrix_text(view.world_from_cam))
    return folder


def icl(root: Path, views: Sequence[View], name: str = "traj0_frei_png") -> Path:
    """A sequence in the TUM-compatible download, numbered from 1, y up."""
    folder = root / name
    for k, view in enumerate(views, start=1):
        shown = view if view.camera == ICL_NUIM_CAMERA else view.through(ICL_NUIM_CAMERA)
        write_image(folder / "rgb" / f"{k}.png", shown.image)
    lines = "".join(f"{k} depth/{k}.png {k} rgb/{k}.png\n" for k in range(1, len(views) + 1))
    write(folder / "associations.txt", lines)
    poses = [FLIP_Y @ view.world_from_cam @ FLIP_Y for view in views]
    times = [str(k) for k in range(1, len(views) + 1)]
    text = "\n".join(tum_rows(times, poses).splitlines()[1:]) + "\n"
    write(folder / "traj0.gt.freiburg", text)
    return folder
