"""The last refinement of the whole map, when a run ends: rounds of recognising and refining, as many as pay."""

from __future__ import annotations

from collections.abc import Callable

from slam.config import RefinementConfig
from slam.mapping import Mapper

# CPU seconds on one core of a server, rounded; only their ratios matter. They are counted and not timed, because the
# same input has to give the same bytes on any machine and under any load.
FRAME_S = 0.012
KEYFRAME_S = 0.15
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
    `always` does `final_rounds` of them and `never` none.

    Args:
        frames, keyframes: of this run. A large map that a short run went on in is not refined for its sake.
        on_round: called before each round with how many are done, of how many at most.
        may_calibrate: whether all keyframes are of one camera, whose focal length may then be found.

    Returns:
        How many rounds there were.
    """
    segments = sorted(set(mapper.graph.segment_of.values()), key=lambda s: (-len(mapper.graph.segment(s)), s))
    calibrates = may_calibrate and wants_calibration(config, mapper)
    budget_s = FRAME_S * frames + KEYFRAME_S * keyframes
    done = 0
    while done < config.final_rounds and _is_worth_it(config, mapper, budget_s, calibrates):
        budget_s -= round_cost_s(config, mapper)
        on_round(done, config.final_rounds)
        errors = [mapper.refine_all(s, free_focal=calibrates and s == segments[0]) for s in segments]
        done += 1
        before, after = max(before for before, _ in errors), max(after for _, after in errors)
        tell(before, after, f"final refinement, round {done} of {config.final_rounds} (errors: pixels)")
    return done


def wants_calibration(config: RefinementConfig, mapper: Mapper) -> bool:
    """Whether the focal length is to be found: asked for, or only assumed so far."""
    keyframes = mapper.graph.keyframes.values()
    match config.calibrate:
        case "auto":
            return all(keyframe.camera.assumed for keyframe in keyframes)
        case asked:
            return asked == "always"


def round_cost_s(config: RefinementConfig, mapper: Mapper) -> float:
    """What one round over the map as it stands is counted at, seconds."""
    landmarks = mapper.landmarks
    observations = sum(int(landmarks.has_place(tracks.ids).sum()) for tracks in landmarks.observed.values())
    return OBSERVATION_S * config.final_iterations * observations


def _is_worth_it(config: RefinementConfig, mapper: Mapper, budget_s: float, calibrates: bool) -> bool:
    """A guessed focal length bends everything, so finding it is worth any time unless no refinement is wanted."""
    match config.final:
        case "always":
            return True
        case "never":
            return False
        case "auto":
            return calibrates or round_cost_s(config, mapper) <= budget_s
