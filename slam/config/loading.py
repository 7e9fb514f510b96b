"""Settings from YAML files and `--set`, validated against `slam.config.schema`, and written as YAML and Markdown.

Later layers override earlier ones: defaults in code, then each file in turn, then each `key.path=value`. Invalid
settings raise one `ConfigError` of one line that names the file or option, the key, and the expected value.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from relocalizer.errors import ConfigError
from slam.config.schema import SlamConfig

# YAML 1.1 reads `on` and `no` as booleans, `1e-3` as text, `010` as eight and `1:30` as ninety. These are
# the rules of YAML 1.2 (core schema) instead, without infinity and not-a-number.
_NUMBER_START = "-+.0123456789"
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", _NUMBER_START),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?", _NUMBER_START),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
)
PRESETS = ("fast", "accurate")
_PLAIN_WORD = re.compile(r"[a-z][a-z0-9_-]*")
_BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars, no duplicate keys, no anchors."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's name

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("anchors and aliases are not used here")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            problem = ""
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key must be a plain name"
            elif key.value in seen:
                problem = f"key '{key.value}' stands twice"
            if problem:
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(key.value)
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}


for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def preset_file(name: str) -> Path:
    """The YAML file of a preset: in the installed package, or in `configs/` of a checkout.

    Raises:
        ConfigError: there is none of that name.
    """
    package = Path(__file__).parent
    for folder in (package / "presets", package.parents[1] / "configs"):
        if (path := folder / f"{name}.yaml").is_file():
            return path
    raise ConfigError(f"--preset {name}: there are {', '.join(PRESETS)}")


def load_config(files: Sequence[Path] = (), overrides: Sequence[str] = ()) -> SlamConfig:
    """The defaults, changed by each YAML file in turn, then by each `key.path=value`.

    Raises:
        ConfigError: a file cannot be read, or keys or values are invalid; one line for all of them.
    """
    layers = [(str(path), _read_yaml(path)) for path in files]
    layers += [_parse_override(override) for override in overrides]
    return _layered({}, layers)


def with_overrides(config: SlamConfig, overrides: Sequence[str]) -> SlamConfig:
    """A configuration with each `key.path=value` applied.

    Raises:
        ConfigError: keys or values are invalid; one line for all of them.
    """
    return _layered(json.loads(config.model_dump_json()), [_parse_override(override) for override in overrides])


def expect_used(config: SlamConfig, overrides: Sequence[str], verb: str, sections: Collection[str]) -> list[str]:
    """Reject overrides of settings that a command does not use.

    Args:
        overrides: `key.path=value` as given with `--set`.
        verb: the command's name for errors, such as 'slam relocalize'.
        sections: the sections of `SlamConfig` that the command uses.

    Returns:
        Changed keys of other sections. They come from files, which may have been written for another command.

    Raises:
        ConfigError: an override is of another section.
    """
    for override in overrides:
        names = override.partition("=")[0].strip().split(".")
        if names[0] not in sections:
            here = [dotted for dotted, _, _ in walk_settings(config) if dotted.partition(".")[0] in sections]
            same = [dotted for dotted in here if dotted.rpartition(".")[2] == names[-1]]
            nearest = difflib.get_close_matches(".".join(names), same, 1, 0.0)
            hint = f"; did you mean '{nearest[0]}'?" if nearest else f" (it uses {', '.join(sections)})"
            raise ConfigError(f"--set {override}: {verb} does not use it{hint}")
    defaults = {dotted: value for dotted, _, value in walk_settings(SlamConfig())}
    return [
        dotted
        for dotted, _, value in walk_settings(config)
        if dotted.partition(".")[0] not in sections and value != defaults[dotted]
    ]


def _layered(merged: dict[str, Any], layers: Sequence[tuple[str, dict[str, Any]]]) -> SlamConfig:
    """The settings `merged`, overridden by each (origin, layer) in turn; the origin is named in errors."""
    origins: dict[str, str] = {}
    for origin, layer in layers:
        _merge(merged, layer, origin, origins)
    try:
        # Through JSON, because only for JSON does pydantic's strict mode accept a list as a tuple and text as a path
        # while rejecting `true` as a number.
        return SlamConfig.model_validate_json(json.dumps(merged), strict=True)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(cast("Mapping[str, Any]", e), origins) for e in error.errors())
        raise ConfigError("; ".join(problems)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = _parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: cannot be read ({reason})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, got {_show(data)}")
    return data


def _parse_override(text: str) -> tuple[str, dict[str, Any]]:
    origin = f"--set {text}"
    dotted, equals, value = text.partition("=")
    names = dotted.strip().split(".")
    if not equals or not all(names):
        raise ConfigError(f"{origin}: expected key.path=value, as in --set features.max_features=800")
    try:
        layer = _parse(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{origin}: the value cannot be read ({_yaml_problem(error)})") from None
    for name in reversed(names):
        layer = {name: layer}
    return origin, cast("dict[str, Any]", layer)


def _parse(text: str) -> Any:
    data = yaml.load(text, _Loader)
    for number in _numbers(data):
        if not math.isfinite(number):
            raise yaml.YAMLError("a number is too large to be represented")
    return data


def _numbers(data: Any) -> Iterator[float]:
    if isinstance(data, float):
        yield data
    elif isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _numbers(value)


def _yaml_problem(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
    return where + (error.problem or error.context or "not YAML")


def _merge(into: dict[str, Any], layer: Mapping[str, Any], origin: str, origins: dict[str, str], at: str = "") -> None:
    """Merge sections key by key and replace all other values; `origins` gets the origin of each dotted key."""
    for name, value in layer.items():
        dotted = f"{at}{name}"
        if isinstance(value, dict):
            origins.setdefault(dotted, origin)
            below = into.get(name)
            into[name] = below = below if isinstance(below, dict) else {}
            _merge(below, value, origin, origins, dotted + ".")
        else:
            into[name] = value
            origins[dotted] = origin


def _explain(error: Mapping[str, Any], origins: Mapping[str, str]) -> str:
    """A pydantic error as text: origin, dotted key, expected value, actual value."""
    names = [str(part) for part in error["loc"]]
    field, used = _field_at(names)
    dotted = ".".join(names[:used]) if error["type"] != "extra_forbidden" else ".".join(names)
    origin = next((origins[key] for key in _prefixes(dotted) if key in origins), "")
    if error["type"] == "extra_forbidden":
        problem = f"{dotted}: unknown key{_suggest(names)}"
    elif error["type"] in ("value_error", "assertion_error"):
        problem = f"{dotted or 'configuration'}: {error['msg'].split(', ', 1)[-1]}"
    elif field is None or _section_of(field) is not None:
        known = ", ".join(_section_at(names[:used]).model_fields) or "none"
        problem = f"{dotted}: expected a section with keys ({known}), got {_show(error['input'])}"
    else:
        problem = f"{dotted}: expected {expectation(field)}, got {_show(error['input'])}"
    return f"{origin}: {problem}" if origin else problem


def _prefixes(dotted: str) -> Iterator[str]:
    while dotted:
        yield dotted
        dotted = dotted.rpartition(".")[0]


def _field_at(names: Sequence[str]) -> tuple[FieldInfo | None, int]:
    """The deepest field on the path, and the number of names that lead to it."""
    section: type[BaseModel] | None = SlamConfig
    field = None
    for used, name in enumerate(names):
        if section is None or name not in section.model_fields:
            return field, used
        field = section.model_fields[name]
        section = _section_of(field)
    return field, len(names)


def _section_at(names: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = SlamConfig
    for name in names:
        below = _section_of(section.model_fields[name]) if name in section.model_fields else None
        section = below or section
    return section


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _suggest(names: Sequence[str]) -> str:
    """Advice for an unknown key: the nearest sibling, otherwise a similar name elsewhere, otherwise to delete it."""
    *parents, name = names
    siblings = list(_section_at(parents).model_fields)
    leaves = {dotted.rpartition(".")[2]: dotted for dotted, _, _ in walk_settings(SlamConfig())}
    beside = {sibling: ".".join([*parents, sibling]) for sibling in siblings}
    for choices, similarity in ((beside, 0.85), (leaves, 0.85), (beside, 0.6)):
        near = difflib.get_close_matches(name, choices, 1, similarity)
        if near:
            return f"; did you mean '{choices[near[0]]}'?"
    there = f"there are {', '.join(siblings)}" if siblings else "this section has no keys"
    return f", perhaps of another version; delete it ({there})"


def expectation(field: FieldInfo) -> str:
    """The values a setting accepts, in words: 'an integer, at least 50, at most 10000'."""
    bounds = [
        words.format(f"{getattr(rule, name):g}")
        for rule in field.metadata
        for name, words in _BOUNDS.items()
        if getattr(rule, name, None) is not None
    ]
    return ", ".join([_kind(field.annotation), *bounds])


def _kind(annotation: Any) -> str:
    simple = {
        int: "an integer",
        float: "a number",
        bool: "true or false",
        str: "text",
        Path: "a path",
        type(None): "null",
    }
    if annotation in simple:
        return simple[annotation]
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(str(a) for a in arguments)
    if get_origin(annotation) in (tuple, list):
        kinds = dict.fromkeys(_kind(a) for a in arguments if a is not Ellipsis)
        return f"a list of {' and '.join(kinds)}"
    if arguments:
        return " or ".join(_kind(a) for a in arguments)
    return getattr(annotation, "__name__", str(annotation))


def _show(value: Any) -> str:
    """A value as YAML, truncated to 60 characters."""
    text = _yaml_scalar(value)
    return text if len(text) <= 60 else text[:57] + "..."


def walk_settings(config: BaseModel, at: str = "") -> Iterator[tuple[str, FieldInfo, Any]]:
    """Every setting (sections excluded) as (dotted key, field, value), in the order of the code."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from walk_settings(value, f"{at}{name}.")
        else:
            yield f"{at}{name}", field, value


def dump_config(config: SlamConfig) -> str:
    """The complete configuration as commented YAML; loading it gives the same configuration."""
    lines = ["# Every setting and its value. Pass this file to --config to use the same settings again.", ""]
    lines += _dump_section(config, type(config)(), indent="")
    return "\n".join(lines) + "\n"


def _dump_section(section: BaseModel, defaults: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(section).model_fields.items():
        value, default = getattr(section, name), getattr(defaults, name)
        if isinstance(value, BaseModel):
            below = list(_dump_section(value, default, indent + "  "))
            yield from [f"{indent}{name}:", *below] if below else [f"{indent}{name}: {{}}"]
            continue
        yield f"{indent}# {field.description or name} ({expectation(field)})"
        changed = "" if value == default else f"  # default {_yaml_scalar(default)}"
        yield f"{indent}{name}: {_yaml_scalar(value)}{changed}"


def _yaml_scalar(value: Any) -> str:
    """A value as JSON, which is also YAML; plain words are not quoted."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and _PLAIN_WORD.fullmatch(value) and isinstance(_parse(value), str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def configuration_page() -> str:
    """Content of docs/configuration.md: every setting with its default, accepted values and description."""
    lines = [
        "# Configuration",
        "",
        "Generated by `make docs` from the code; do not edit. Every setting has a default, so a file contains",
        "only differences. Later layers override earlier ones: the defaults, each `--config FILE` in turn, each",
        "`--set key.path=value`. `slam config` prints the effective settings.",
    ]
    lines += _page_section(SlamConfig(), "")
    return "\n".join(lines) + "\n"


def _page_section(section: BaseModel, at: str) -> Iterator[str]:
    fields = type(section).model_fields
    here = {name: field for name, field in fields.items() if not isinstance(getattr(section, name), BaseModel)}
    below = [name for name in fields if name not in here]
    about = " ".join((type(section).__doc__ or "").split())
    if at:
        yield from ["", f"## {at}"]
    if about:
        yield from ["", about]
    if here:
        yield from ["", "| key | default | values | description |", "|---|---|---|---|"]
    for name, field in here.items():
        default = _yaml_scalar(getattr(section, name))
        cells = [
            f"`{at + '.' if at else ''}{name}`",
            f"`{default}`",
            expectation(field),
            field.description or "",
        ]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    for name in below:
        yield from _page_section(getattr(section, name), f"{at}.{name}" if at else name)
