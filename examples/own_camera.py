"""A camera of your own, whose driver calls back from a thread of its own; the pose of each image is printed.

python examples/own_camera.py sequences/room_loop/video.mp4 sequences/room_loop/camera.yaml --map maps/room
"""

import argparse
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from relocalizer import Undistorter, load_camera
from slam import Frame, Slam, SlamConfig

OnImage = Callable[[np.ndarray | None, int], None]


def stand_in_for_a_driver(video: str, on_image: OnImage) -> None:
    """Replace this by the SDK of your camera: it calls back with BGR images and their time in nanoseconds."""
    capture, number = cv2.VideoCapture(video), 0
    while (read := capture.read())[0]:
        on_image(read[1], number * 33_333_333)
        number += 1
    on_image(None, 0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("video", help="video that stands in for the camera")
    parser.add_argument("camera", type=Path, help="camera.yaml of its images")
    parser.add_argument("--map", default="maps/own_camera", help="folder to save the map to")
    given = parser.parse_args(arguments)

    # Slam belongs to one thread, so the callback only hands images over. It waits when four are in the queue; a driver
    # that must not wait drops an image instead: catch queue.Full of put_nowait.
    waiting: queue.Queue[tuple[np.ndarray | None, int]] = queue.Queue(maxsize=4)
    driver = threading.Thread(
        target=stand_in_for_a_driver, args=(given.video, lambda image, time_ns: waiting.put((image, time_ns)))
    )
    undistort = Undistorter(load_camera(given.camera))
    slam, index = Slam.create(SlamConfig()), 0
    driver.start()
    while (arrived := waiting.get())[0] is not None:
        image = undistort(cv2.cvtColor(arrived[0], cv2.COLOR_BGR2RGB))
        tracked = slam.step(Frame(index=index, timestamp_ns=arrived[1], image=image, camera=undistort.camera))
        pose = tracked.world_from_cam
        print(index, tracked.reason or tracked.state if pose is None else pose.translation.round(3))
        index += 1
    driver.join()
    print(f"{len(slam.finish().trajectory)} of {index} images have a pose")
    slam.save_map(given.map)


if __name__ == "__main__":
    main()
