from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from relocalizer.errors import ConfigError
from slam.config.loading import configuration_page, dump_config, load_config, walk_settings
from slam.config.schema import KeyframesConfig, SlamConfig


def problem(*overrides: str, files: tuple[Path, ...] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(files, overrides)
    text = str(caught.value)
    assert "\n" not in text
    return text


def write(folder: Path, text: str, name: str = "indoor.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_without_files_the_defaults_of_the_code_hold():
    assert load_config() == SlamConfig()


def test_a_file_changes_only_what_it_names(tmp_path):
    config = load_config([write(tmp_path, "input:\n  max_side_px: 640\n")])
    assert config.input.max_side_px == 640
    assert config.input.prefetch_frames == SlamConfig().input.prefetch_frames
    assert config.features == SlamConfig().features


def test_later_files_win_and_set_wins_over_files(tmp_path):
    first = write(tmp_path, "seed: 1\ninput: {max_side_px: 640, prefetch_frames: 2}\n", "a.yaml")
    second = write(tmp_path, "input: {max_side_px: 800}\n", "b.yaml")
    config = load_config([first, second], ["input.prefetch_frames=5"])
    assert (config.seed, config.input.max_side_px, config.input.prefetch_frames) == (1, 800, 5)


def test_an_empty_file_changes_nothing(tmp_path):
    assert load_config([write(tmp_path, "# nothing yet\n")]) == SlamConfig()


@pytest.mark.parametrize(("text", "value"), [("7e1", 70.0), ("7.5E+1", 75.0), ("70", 70.0), ("+70.", 70.0)])
def test_numbers_with_an_exponent_are_numbers(text, value):
    assert load_config([], [f"input.assumed_fov_deg={text}"]).input.assumed_fov_deg == value


@pytest.mark.parametrize("word", ["on", "off", "yes", "no"])
def test_on_off_yes_and_no_are_words_and_not_booleans(word):
    assert problem(f"seed={word}").endswith(f"got {word}")


@pytest.mark.parametrize("value", ["true", "3.0", "'3'", "010", "1_0", "1:30", ".nan", ".inf", "null", ""])
def test_what_is_not_an_integer_does_not_pass_as_one(value):
    assert "seed: expected an integer, at least 0, got " in problem(f"seed={value}")


def test_a_number_too_large_to_hold_is_refused():
    assert "too large" in problem("input.assumed_fov_deg=1e999")


def test_an_unknown_key_names_file_key_and_the_nearest_one(tmp_path):
    path = write(tmp_path, "features:\n  max_featurs: 900\n")
    assert problem(files=(path,)) == (
        f"{path}: features.max_featurs: unknown key; did you mean 'features.max_features'?"
    )


def test_a_key_in_the_wrong_section_is_reported_with_its_place():
    assert "did you mean 'features.max_features'?" in problem("max_features=900")
    assert "did you mean 'input.max_side_px'?" in problem("features.max_side_px=900")


def test_a_setting_of_an_older_version_is_to_be_deleted(tmp_path):
    path = write(tmp_path, "keyframes:\n  thin_beyond: 0\n")
    there = ", ".join(KeyframesConfig.model_fields)
    assert problem(files=(path,)) == (
        f"{path}: keyframes.thin_beyond: unknown key, perhaps of another version; delete it (there are {there})"
    )


def test_an_unknown_section_lists_those_there_are():
    assert "there are seed, input, features" in problem("qqqqqq.w=1")


def test_a_value_out_of_bounds_names_the_bounds(tmp_path):
    path = write(tmp_path, "features: {max_features: 20}\n")
    assert problem(files=(path,)) == (
        f"{path}: features.max_features: expected an integer, at least 50, at most 10000, got 20"
    )


def test_a_wrong_choice_lists_the_choices():
    assert "predictor.kind: expected one of auto, geometric, reloc3r-512, reloc3r-224, got orb" in problem(
        "predictor.kind=orb"
    )


def test_a_value_in_place_of_a_section_is_reported_with_the_keys():
    assert "features: expected a section with keys (max_features" in problem("features=3")


def test_all_problems_are_reported_together_each_with_its_origin(tmp_path):
    path = write(tmp_path, "sed: 1\ninput: {max_side_px: 1}\n")
    text = problem("features.max_features=1", files=(path,))
    assert f"{path}: sed: unknown key" in text
    assert f"{path}: input.max_side_px: expected" in text
    assert "--set features.max_features=1: features.max_features: expected" in text


def test_the_layer_that_set_the_bad_value_is_blamed(tmp_path):
    good, bad = write(tmp_path, "seed: 1\n", "good.yaml"), write(tmp_path, "seed: -1\n", "bad.yaml")
    assert problem(files=(good, bad)).startswith(f"{bad}: seed: ")


def test_a_key_that_stands_twice_is_an_error_with_its_line(tmp_path):
    path = write(tmp_path, "seed: 1\ninput:\n  max_side_px: 640\nseed: 2\n")
    assert problem(files=(path,)) == f"{path}: line 4: key 'seed' stands twice"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: [1", "line 1: "),
        ("- 1\n- 2\n", "expected 'key: value' lines"),
        ("just words", "expected 'key: value' lines"),
        ("a: &x 1\nb: *x\n", "anchors and aliases are not used here"),
        ("? [1, 2]\n: 3\n", "a key must be a plain name"),
        ("seed: 1\n---\nseed: 2\n", "another document"),
        ("seed: !!python/object/apply:os.getcwd []\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_not_a_plain_list_of_settings_says_why(tmp_path, text, expected):
    path = write(tmp_path, text)
    said = problem(files=(path,))
    assert said.startswith(f"{path}: ")
    assert expected in said


def test_a_missing_file_a_folder_and_an_image_are_distinguished(tmp_path):
    assert "no such configuration file" in problem(files=(tmp_path / "none.yaml",))
    assert "cannot be read (Is a directory)" in problem(files=(tmp_path,))
    image = tmp_path / "image.yaml"
    image.write_bytes(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    assert "not UTF-8 text" in problem(files=(image,))


@pytest.mark.parametrize("text", ["seed", "=3", "input..max_side_px=3", ".seed=3", "seed.=3"])
def test_set_needs_a_path_and_a_value(text):
    assert "expected key.path=value" in problem(text)


def test_set_takes_a_whole_section_and_keeps_its_other_keys():
    config = load_config([], ["input.prefetch_frames=3", "input={max_side_px: 500}"])
    assert (config.input.prefetch_frames, config.input.max_side_px) == (3, 500)


def test_settings_do_not_change_after_loading():
    with pytest.raises(ValueError, match="frozen"):
        load_config().seed = 4


def test_the_dump_of_the_defaults_holds_every_setting_with_its_description():
    text = dump_config(SlamConfig())
    for dotted, field, _ in walk_settings(SlamConfig()):
        assert f"{dotted.rpartition('.')[2]}: " in text
        assert field.description is None or field.description in text


def test_the_dump_marks_what_differs_from_the_defaults():
    text = dump_config(load_config([], ["seed=7"]))
    assert "seed: 7  # default 0\n" in text
    assert text.count("# default ") == 1


@given(
    seed=st.integers(0, 2**62),
    fov=st.floats(10, 150, exclude_min=True, exclude_max=True),
    side=st.integers(160, 4096),
    kind=st.sampled_from(["auto", "geometric", "reloc3r-512", "reloc3r-224"]),
)
def test_the_dump_loads_back_to_the_same_configuration(tmp_path_factory, seed, fov, side, kind):
    overrides = [f"seed={seed}", f"input.assumed_fov_deg={fov!r}", f"input.max_side_px={side}"]
    config = load_config([], [*overrides, f"predictor.kind={kind}"])
    path = write(tmp_path_factory.getbasetemp(), dump_config(config), "round.yaml")
    assert load_config([path]) == config


def test_every_setting_is_described_and_every_number_is_bounded():
    for dotted, field, value in walk_settings(SlamConfig()):
        assert field.description, f"{dotted} has no description"
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert field.metadata, f"{dotted} has no bounds"


def test_the_configuration_page_is_fresh(root):
    page = (root / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == configuration_page(), "docs/configuration.md is stale: run `make docs`"


def shipped_files() -> list[Path]:
    return sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.name)
def test_shipped_files_load_and_every_line_differs_from_the_defaults(path):
    config = load_config([path])
    changed = {
        dotted
        for (dotted, _, value), (_, _, default) in zip(walk_settings(config), walk_settings(SlamConfig()), strict=True)
        if value != default
    }
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    assert len([line for line in lines if not line.rstrip().endswith(":")]) == len(changed)


def test_sections_are_models_all_the_way_down():
    for name in SlamConfig.model_fields:
        assert isinstance(getattr(SlamConfig(), name), BaseModel | int)
