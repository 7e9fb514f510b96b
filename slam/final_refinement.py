"""The last refinement of the whole map, when a run ends: rounds of recognising and refining, as many as pay."""

from __future__ import annotations

from collections.abc import Callable

from slam.config import RefinementConfig
from slam.mapping import Mapper
from slam.refinement import GIVEN, GUESSED, LensPrior

# CPU seconds on one core of a server, rounded; only their ratios matter. They are counted and not timed, because the
# same input has to give the same bytes on any machine and under any load.
FRAME_S = 0.012
KEYFRAME_S = 0.15
GUESS_ROUNDS = 2  # times as many at most until a guessed focal length has settled
LENS_COST = 1.5  # times that of a round in which the camera is held
OBSERVATION_S = 4e-6  # in each iteration of a round, the recognising before it included


def refine_everything(
    mapper: Mapper,
    config: RefinementConfig,
    *,
    frames: int,
    keyframes: int,
    may_calibrate: bool,
    tell: Callable[[float, float, str], None],
    on_round: Callable[[int, int], None] = lambda done, of: None,
) -> int:
    """Rounds over every segment of the map; `tell` hears the errors before and after each (pixels), and its name.

    With `final: auto` the rounds stop before they would have taken longer than the run itself, by the costs above;
    `always` does `final_rounds` of them and `never` none. A guessed camera may take twice as many, whatever they cost.

    Args:
        frames, keyframes: of this run. A large map that a short run went on in is not refined for its sake.
        on_round: called before each round with how many are done, of how many at most.
        may_calibrate: whether all keyframes are of one camera, whose focal length may then be found.

    Returns:
        How many rounds there were.
    """
    segments = sorted(set(mapper.graph.segment_of.values()), key=lambda s: (-len(mapper.graph.segment(s)), s))
    prior = lens_prior(config, mapper) if may_calibrate else None
    budget_s = FRAME_S * frames + KEYFRAME_S * keyframes
    done, most = 0, config.final_rounds * (GUESS_ROUNDS if prior == GUESSED else 1)
    while done < most and _is_worth_it(config, mapper, budget_s, prior):
        if done >= config.final_rounds and mapper.lens.is_settled:
            break
        budget_s -= round_cost_s(config, mapper, prior)
        on_round(done, most)
        errors = [mapper.refine_all(s, lens=prior if s == segments[0] else None) for s in segments]
        done += 1
        before, after = max(before for before, _ in errors), max(after for _, after in errors)
        tell(before, after, f"final refinement, round {done} of {most} (errors: pixels)")
    return done


def lens_prior(config: RefinementConfig, mapper: Mapper) -> LensPrior | None:
    """How far the camera is believed: a calibration leaves some distortion, a guess says little."""
    if config.calibrate == "never":
        return None
    guessed = all(keyframe.camera.assumed for keyframe in mapper.graph.keyframes.values())
    return GUESSED if guessed or config.calibrate == "always" else GIVEN


def round_cost_s(config: RefinementConfig, mapper: Mapper, prior: LensPrior | None) -> float:
    """What one round over the map as it stands is counted at, seconds."""
    landmarks = mapper.landmarks
    observations = sum(int(landmarks.has_place(tracks.ids).sum()) for tracks in landmarks.observed.values())
    return (LENS_COST if prior else 1.0) * OBSERVATION_S * config.final_iterations * observations


def _is_worth_it(config: RefinementConfig, mapper: Mapper, budget_s: float, prior: LensPrior | None) -> bool:
    """A guessed focal length bends everything, so finding it is worth any time unless no refinement is wanted."""
    match config.final:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return prior == GUESSED or round_cost_s(config, mapper, prior) <= budget_s
