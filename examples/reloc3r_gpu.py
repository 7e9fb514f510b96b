"""SLAM with the Reloc3r network as the pair predictor, on a GPU.

python examples/reloc3r_gpu.py sequences/room_loop --out runs/reloc3r

Needs `pip install 'reloc3r-slam[reloc3r]'` and `slam weights fetch reloc3r-512`: 1.71 GB under CC BY-NC-SA 4.0, which
rules out commercial use.
"""

import argparse
from collections.abc import Sequence

from slam import SlamConfig, record_run


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="video, folder of images or data set")
    parser.add_argument("--out", default="runs/reloc3r", help="run folder to create")
    parser.add_argument("--network", choices=["reloc3r-512", "reloc3r-224"], default="reloc3r-512")
    parser.add_argument("--weights", default="", help="a checkpoint of your own instead of the published one")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, mps or cpu")
    given = parser.parse_args(arguments)

    predictor = {"kind": given.network, "weights": given.weights, "device": given.device}
    run = record_run(given.source, out=given.out, config=SlamConfig(predictor=predictor))
    print(f"{run.tracked} of {run.frames} frames, {run.verdict}")
    print(f"next: slam view {given.out}")


if __name__ == "__main__":
    main()
