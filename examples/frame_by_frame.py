"""Feed images one by one, print the live pose of each, save the map, reopen it and localize an image in it.

python examples/frame_by_frame.py sequences/room_loop --frames 150 --map maps/room
"""

import argparse

from relocalizer import NotFound, Relocalizer
from slam import Frame, Slam, SlamConfig, open_source


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="video, folder of images or data set")
    parser.add_argument("--frames", type=int, default=300, help="use at most this many frames")
    parser.add_argument("--map", default="maps/frame_by_frame", help="folder to save the map to")
    arguments = parser.parse_args()

    images = open_source(arguments.source, max_frames=arguments.frames)  # any iterable of numpy arrays would do
    slam = Slam.create(SlamConfig())
    for number, (image, camera) in enumerate((frame.image, frame.camera) for frame in images):
        frame = Frame(index=number, timestamp_ns=number * 33_333_333, image=image, camera=camera)
        tracked = slam.step(frame)
        if tracked.world_from_cam is None:
            print(f"{number}: {tracked.state} ({tracked.reason})")
        else:
            x, y, z = tracked.world_from_cam.translation
            print(f"{number}: {x:.3f} {y:.3f} {z:.3f}, keyframe {tracked.keyframe_id}")

    result = slam.finish()
    print(f"{len(result.trajectory)} frames have a final pose, path {result.trajectory.length:.2f} {result.units.name}")
    slam.save_map(arguments.map)

    located = Relocalizer.open(arguments.map).locate(image, camera)
    if isinstance(located, NotFound):
        print(f"the last image is not in the map: {located.reason}")
    else:
        print(
            f"the last image is at {located.world_from_cam.translation.round(3)}, confidence {located.confidence:.2f}"
        )


if __name__ == "__main__":
    main()
