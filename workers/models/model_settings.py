"""Settings of a config.json, read strictly and without torch:
a value of the wrong type is a ValueError that names it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workers.models import families
from workers.models.model_json import finite, shown

Settings = Mapping[str, Any]
LAYER_KEYS = ("layer_types", "layers_block_type", "block_types")
"""What each layer is, by the name that a family has for it."""


def text_settings(config: Settings) -> Settings:
    """Settings of the language model,
    with what transformers assumes where a file leaves out what counts here."""
    text = config.get("text_config")
    if text is None:
        text = config
    if not isinstance(text, Mapping):
        raise ValueError(f"text_config is {shown(text)}, not a table of settings")

    for named in (text.get("model_type"), config.get("model_type")):
        if named is not None and not isinstance(named, str):
            raise ValueError(f"model_type is {shown(named)}, not a name")
    kind = text.get("model_type", config.get("model_type"))
    defaults = families.DEFAULTS.get(kind or "", {})
    missing = {key: value for key, value in defaults.items() if key not in text}
    if kind is not None and "model_type" not in text:
        missing["model_type"] = kind
    return {**text, **missing} if missing else text


MOST = {"num_hidden_layers": 10_000, "n_layer": 10_000, "n_layers": 10_000}
"""A model of more layers than anybody ever made is a slip of the pen; other counts go up to 2**31 - 1."""


def count_of(settings: Settings, *names: str) -> int | None:
    """The first of these settings that is there, a number of at least 1; None where none is. Raises
    ValueError for others."""
    for name in names:
        value = settings.get(name)
        most = MOST[name] if name in MOST else 2**31 - 1
        if value is not None:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {shown(value)}, not a whole number of at least 1")
            if value > most:
                raise ValueError(f"{name} is {shown(value)}; {most:,} is the most")
            return value
    return None


def number_of(settings: Settings, name: str) -> float | None:
    """A number, if the setting is there. Raises ValueError for what is none."""
    return finite(name, settings.get(name))


def share_of(settings: Settings, name: str) -> float | None:
    """A number over 0 and up to 1, if the setting is there and not 0. Raises ValueError for others."""
    value = number_of(settings, name)
    if value is not None and not 0 <= value <= 1:
        raise ValueError(f"{name} is {shown(value)}, not a share from 0 to 1")
    return value or None


def window_of(settings: Settings, name: str) -> int | None:
    """A number of tokens; None where there is no such window, which files also write as 0 and -1."""
    return None if settings.get(name) in (0, -1) else count_of(settings, name)


def table_of(settings: Settings, name: str) -> Settings:
    """Settings within a setting; none where it is not there. Raises ValueError for what is no table."""
    value = settings.get(name)
    if value is not None and not isinstance(value, Mapping):
        raise ValueError(f"{name} is {shown(value)}, not a table of settings")
    return value or {}


def kind_of(settings: Settings) -> str:
    """The family by transformers' name for it; empty where none is named."""
    return settings.get("model_type") or ""


def layer_types(settings: Settings) -> tuple[str, list[str]]:
    """The setting that says what each layer is, and its different values."""
    for name in LAYER_KEYS:
        value = settings.get(name)
        if value is not None:
            if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
                raise ValueError(f"{name} is {shown(value)}, not a list of names")
            return name, sorted(set(value))
    return LAYER_KEYS[0], []


def hidden_width(text: Mapping[str, Any]) -> int | None:
    """Width of a hidden state, where the settings say it."""
    return count_of(text, "hidden_size", "n_embd", "d_model")


def inner_width(text: Mapping[str, Any], hidden: int) -> int:
    """Width of the layers' middle, of the widest layer; four hidden ones where the settings do not say."""
    for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"):
        value = text.get(name)
        widths = [
            each
            for each in (value if isinstance(value, list | tuple) else [value])
            if type(each) is int and each > 0
        ]
        if widths:
            return max(widths)
    return 4 * hidden
