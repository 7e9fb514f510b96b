"""A whole run that asks a network: what it is asked, and that its structure does not rest on the answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from relocalizer.network.model import Architecture, Reloc3r
from slam.cli import main

TINY = Architecture(enc_embed_dim=32, enc_depth=1, enc_num_heads=2, dec_embed_dim=24, dec_depth=1, dec_num_heads=2)
FRAMES = 60


class Asked:
    """How many images the network encoded and how many pairs it decoded."""

    images = 0
    pairs = 0


@pytest.fixture(scope="module")
def ended(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], Asked]:
    """The exit code and the report of a run with random weights, and what was asked of the network in it."""
    out, asked = tmp_path_factory.mktemp("run") / "out", Asked()
    encode, decode = Reloc3r.encode, Reloc3r.decode_raw

    def counted_encode(model: Reloc3r, images: Any) -> Any:
        asked.images += len(images)
        return encode(model, images)

    def counted_decode(model: Reloc3r, first: Any, second: Any) -> Any:
        asked.pairs += len(first)
        return decode(model, first, second)

    options = ["--predictor", "reloc3r-224", "--random-weights", "--max-frames", str(FRAMES), "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("relocalizer.predictors.reloc3r_predictor.Architecture", lambda: TINY)
        patch.setattr(Reloc3r, "encode", counted_encode)
        patch.setattr(Reloc3r, "decode_raw", counted_decode)
        with pytest.raises(SystemExit) as exit:
            main(["run", str(root / "sequences" / "room_loop"), "-o", str(out), *options])
    return int(exit.value.code or 0), json.loads((out / "report.json").read_text()), asked


def test_the_run_follows_every_frame_though_the_answers_mean_nothing(ended: Any) -> None:
    _, report, _ = ended
    assert report["frames"] == report["tracked"] == FRAMES
    assert report["keyframes"] >= 4
    assert report["lost_episodes"] == []


def test_the_result_is_called_unusable_all_the_same(ended: Any) -> None:
    code, report, _ = ended
    assert code == 1
    assert report["verdict"]["grade"] == "failed"
    assert "random weights" in report["reason"]


def test_every_keyframe_is_encoded_once_and_nothing_else_but_a_first_try(ended: Any) -> None:
    _, report, asked = ended
    assert report["keyframes"] <= asked.images <= report["keyframes"] + 1


def test_a_keyframe_is_related_to_the_one_before_it(ended: Any) -> None:
    _, report, asked = ended
    assert report["keyframes"] - 2 <= asked.pairs <= report["keyframes"] + 2
