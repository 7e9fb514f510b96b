"""Ten most similar among 100,000 places: what the retriever finds and costs, beside comparing all with numpy.

    python docs/experiments/retrieval_at_scale.py --measure SEQUENCE... --out statistics.npz
    python docs/experiments/retrieval_at_scale.py --from statistics.npz --draws 6

The first measures VLADs of real videos. The second draws a longer video like them and searches in it. A VLAD is what
all images share, what those of a scene share, what those of a place share (fading within a few keyframes), and the
rest, half of it, its own. The shares and the fading are those of the measured videos. All parts but the first vary
along directions drawn from the measured covariance shrunk towards its diagonal, by as much as makes unrelated
images scatter as the measured ones do. Three stretches in ten go where the camera has been before.

A query is a keyframe that does not see the nine before and after it, as in `slam.loop_closing.loop_closer`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relocalizer.config import FeaturesConfig
from relocalizer.features import detect_features
from relocalizer.images import to_gray
from relocalizer.retrieval import FaissRetriever
from relocalizer.vlad import shipped_vlad
from slam.config.schema import SlamConfig
from slam.input.open_source import open_source

Rows = NDArray[np.float32]

SHARED, SCENE, PLACE = 0.134, 0.06, 0.27  # of a unit vector's square; the rest is the image's own
FADING = 3.0  # keyframes in which a place's part falls to 1/e
SHRUNK = 0.4
STRETCH, REVISITED = 500, 0.3
GAP, WANTED = 10, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", nargs="+", metavar="SEQUENCE", default=[])
    parser.add_argument("--every", type=int, default=2, help="n-th image")
    parser.add_argument("--out", type=Path, default=Path("statistics.npz"))
    parser.add_argument("--from", dest="statistics", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--draws", type=int, default=1, help="videos drawn, one after another")
    arguments = parser.parse_args()
    if arguments.measure:
        videos = {Path(name).name: described(name, arguments.every) for name in arguments.measure}
        np.savez(arguments.out, **videos)
        tell_statistics(videos)
    if arguments.statistics:
        with np.load(arguments.statistics, allow_pickle=False) as data:
            videos = {name: data[name] for name in data.files}
        tell_statistics(videos)
        for draw in range(arguments.draws):
            search(long_video(videos, arguments.count, np.random.default_rng(draw)), arguments.queries)


# --- what videos look like ------------------------------------------------------------------------------


def described(sequence: str, every: int) -> Rows:
    """VLADs (N, D) of every n-th image of a sequence."""
    with closing(open_source(sequence, config=SlamConfig().input, stride=every)) as source:
        features = (detect_features(to_gray(frame.image), FeaturesConfig()) for frame in source)
        return np.array([shipped_vlad().describe(found) for found in features])


def tell_statistics(videos: dict[str, Rows]) -> None:
    for name, rows in videos.items():
        similarity = rows @ rows.T
        lags = {lag: float(np.diag(similarity, lag).mean()) for lag in (1, 2, 4, 8, 16, 32) if lag < len(rows)}
        far = similarity[np.triu_indices(len(rows), min(60, len(rows) // 3))]
        said = "  ".join(f"{lag}: {value:.2f}" for lag, value in lags.items())
        print(f"{name}: {len(rows)} images, similarity by steps {said}; far {far.mean():.3f} +- {far.std():.3f}")
        print(f"    of another video's variance, its own 128 directions hold {captured(rows, videos, name):.0%}")


def captured(rows: Rows, videos: dict[str, Rows], name: str) -> float:
    """The share of this video's variance that lies along the 128 strongest directions of the others."""
    others = [v for other, v in videos.items() if other != name]
    if not others:
        return float("nan")
    known = np.concatenate(others)
    _, _, axes = np.linalg.svd(known - known.mean(axis=0), full_matrices=False)
    away = rows - known.mean(axis=0)
    return float(((away @ axes[:128].T) ** 2).sum() / (away**2).sum())


def long_video(videos: dict[str, Rows], count: int, rng: np.random.Generator) -> Rows:
    """Unit vectors (count, D)."""
    means = {name: rows.mean(axis=0) for name, rows in videos.items()}
    residuals = np.concatenate([rows - means[name] for name, rows in videos.items()])
    draw = drawer(residuals, rng)
    shared = np.mean(list(means.values()), axis=0)
    shared *= np.sqrt(SHARED) / np.linalg.norm(shared)
    place = draw(count) * np.float32(np.sqrt(PLACE))
    kept = np.float32(np.exp(-1.0 / FADING))
    for k in range(1, count):
        if k % STRETCH:
            place[k] = kept * place[k - 1] + np.sqrt(1 - kept**2) * place[k]
    stretches = -(-count // STRETCH)
    scene_of = np.arange(stretches)
    scenes = draw(stretches) * np.float32(np.sqrt(SCENE))
    video = draw(count) * np.float32(np.sqrt(1.0 - SHARED - SCENE - PLACE)) + shared.astype(np.float32)
    for n in range(stretches):
        here = slice(n * STRETCH, min((n + 1) * STRETCH, count))
        if n > 0 and rng.random() < REVISITED:
            before = int(rng.integers(0, n))
            scene_of[n] = scene_of[before]
            place[here] = place[before * STRETCH : before * STRETCH + (here.stop - here.start)]
        video[here] += place[here] + scenes[scene_of[n]]
    video /= np.linalg.norm(video, axis=1, keepdims=True)
    return video


def drawer(residuals: Rows, rng: np.random.Generator) -> Callable[[int], Rows]:
    """Draws vectors with mean square 1 from the covariance of residuals (N, D), shrunk towards its diagonal."""
    size, dimension = residuals.shape
    energy = float((residuals**2).sum(axis=1).mean())
    along = (residuals / np.sqrt(size * energy)).astype(np.float32)
    apart = np.sqrt((residuals**2).mean(axis=0) / energy).astype(np.float32)

    def draw(count: int) -> Rows:
        drawn = np.empty((count, dimension), np.float32)
        for start in range(0, count, 5000):
            part = drawn[start : start + 5000]
            part[:] = np.sqrt(1 - SHRUNK) * (rng.standard_normal((len(part), size), dtype=np.float32) @ along)
            part += np.sqrt(SHRUNK) * apart * rng.standard_normal(part.shape, dtype=np.float32)
        return drawn

    return draw


# --- searching ------------------------------------------------------------------------------------------


def search(video: Rows, queries: int) -> None:
    """Recall and time of the retriever after removing a hundred keyframes, and of numpy comparing all."""
    started = time.process_time()
    retriever = FaissRetriever()
    for key, row in enumerate(video):
        retriever.add(key, row)
    print(f"{len(video)} of {video.shape[1]}: added in {time.process_time() - started:.1f} s")
    gone = range(7, len(video), max(1, len(video) // 100))
    started = time.process_time()
    for key in gone:
        retriever.remove(key)
    print(f"{len(gone)} removed, {1e3 * (time.process_time() - started) / len(gone):.2f} ms each")
    left = np.ones(len(video), bool)
    left[gone] = False
    asked = np.random.default_rng(1).choice(np.flatnonzero(left), queries, replace=False)
    compare(video, left, asked.tolist(), retriever)


def compare(video: Rows, left: NDArray[np.bool_], asked: Sequence[int], retriever: FaissRetriever) -> None:
    restore_encoding, in_a_row, ours, all_of_them = [], [], [], []
    for q in asked:
        near = range(max(0, q - GAP + 1), min(len(video), q + GAP))
        started = time.process_time(), time.perf_counter()
        retriever.query(video[q], WANTED, frozenset(near))
        in_a_row.append((time.process_time() - started[0], time.perf_counter() - started[1]))
    for q in asked:
        near = range(max(0, q - GAP + 1), min(len(video), q + GAP))
        started = time.process_time(), time.perf_counter()
        found = retriever.query(video[q], WANTED, frozenset(near))
        ours.append((time.process_time() - started[0], time.perf_counter() - started[1]))
        started = time.process_time(), time.perf_counter()
        similarity = video @ video[q]
        similarity[near] = -2.0
        similarity[~left] = -2.0
        best = np.argpartition(-similarity, WANTED)[:WANTED]
        all_of_them.append((time.process_time() - started[0], time.perf_counter() - started[1]))
        restore_encoding.append(len({c.key for c in found} & set(best.tolist())) / WANTED)
    cold = "retriever, caches full of what numpy read"
    for name, times in (("retriever", in_a_row), (cold, ours), ("numpy, all compared", all_of_them)):
        cpu, wall = 1e3 * np.median(times, axis=0)
        print(f"{name}: median {cpu:.2f} ms of CPU, {wall:.2f} ms of wall time")
    ratios = [np.median(all_of_them, axis=0)[0] / np.median(times, axis=0)[0] for times in (in_a_row, ours)]
    print(
        f"recall@{WANTED} {np.mean(restore_encoding):.4f}, worst query {min(restore_encoding):.1f}; "
        f"{ratios[0]:.0f} times as fast, with such caches {ratios[1]:.0f}"
    )


if __name__ == "__main__":
    main()
