"""The web UI's scripts and extensions, in `alwayson_scripts`: which of them ask for something.

Clients send all that the web UI has, nearly always switched off. What is off asks for nothing. What is on is refused by
its name, but for ControlNet, and for three built-in scripts that repeat fields of the request: Seed, Sampler, Refiner.

A script's arguments are a list without names, so that a script is off is told by a rule. Its first argument is its
switch, nearly always: in `[false, 1.01, 1.02]` it is off. Before the switch there may be arguments that are empty, as
in `[null, false, "0"]`. Arguments with names say so themselves: `[{"enable": false}]`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import msgspec

from app.api.automatic1111.structs import MAX_ITEMS, Name, Number, Whole, wrong
from app.errors import Faults, plain
from app.parsing.json import parsed_json

SCRIPT, FIELD = "controlnet", "alwayson_scripts"
CONTROLNET = ("controlnet", "sdforgecontrolnet", "controlnetintegrated", "sdwebuicontrolnet")
# These only show something, or change parts that this service does not have (LoRAs).
IDLE = ("apipayload", "comments", "extranetworks", "lorablockweight", "modelkeyword")
# The positions of the switches, in scripts whose first argument is not one.
SWITCHES = {
    "reactor": (1,),
    "roop": (1,),
    "segmentanything": (0, 9, 12),
    "latentmirroring": (0, 2, 3),  # its mode, and by how much it moves
    "aestheticembeddings": (4,),  # its embedding
}
# These are on by default, and then do nothing unless a prompt has their syntax or another switch is on: combinatorial,
# magic prompt, feeling lucky, attention grabber, Jinja templates, no image generation.
BY_PROMPT = {
    "dynamicprompts": (re.compile(r"\{[^{}]*\||\{[^{}]*\$\$|\$\{|__[\w/*-]+__"), (1, 3, 4, 5, 13, 14)),
    "unprompted": (re.compile(r"\["), ()),
}
SWITCH_NAMES = frozenset({"enable", "enabled", "active", "activate", "activated", "on"})
SWITCH_ENDS = ("enable", "enabled", "active")
NOTHING = ("", "none", "off", "false", "disable", "disabled", "automatic", "0")
WORD_CHARS = 20  # more than these words have: what is longer may be an image
DEPTH = 8  # of lists and objects in each other, looked at; deeper ones count as on

Args: TypeAlias = Sequence[Any]
Kind = TypeVar("Kind", bound=msgspec.Struct)
Found = TypeVar("Found")

_list = msgspec.json.Decoder(list[msgspec.Raw])
_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any = msgspec.json.Decoder()


class SeedArgs(msgspec.Struct, frozen=True, array_like=True):
    """The arguments of the script Seed."""

    seed: int | None = None
    extra: bool | None = False
    subseed: Any = None
    subseed_strength: Number | None = 0.0
    resize_from_w: Whole | None = 0
    resize_from_h: Whole | None = 0


class SamplerArgs(msgspec.Struct, frozen=True, array_like=True):
    """The arguments of the script Sampler."""

    steps: Whole | None = None
    sampler: Name | None = None
    scheduler: Name | None = None


class RefinerArgs(msgspec.Struct, frozen=True, array_like=True):
    """The arguments of the script Refiner."""

    enable: bool | None = False
    checkpoint: Name | None = None


@dataclass(frozen=True, slots=True)
class Scripts:
    """The requests of the scripts: ControlNet's arguments, and the values of Seed and Sampler."""

    units: Sequence[msgspec.Raw]
    seed: SeedArgs
    sampler: SamplerArgs


def read(scripts: Mapping[str, msgspec.Raw], prompts: Sequence[str]) -> Scripts:
    """Read the scripts. Raises Problem, which names each script that is on but not supported."""
    faults, units = Faults(), list[msgspec.Raw]()
    seed, sampler = SeedArgs(), SamplerArgs()
    for name, value in scripts.items():
        with faults.noted():
            match key := _key(name):
                case _ if key in CONTROLNET:
                    units += _units(name, value)
                case "seed":
                    _check_seed(seed := _named(name, value, SeedArgs))
                case "sampler":
                    sampler = _named(name, value, SamplerArgs)
                case "refiner":
                    refiner = _named(name, value, RefinerArgs)
                    _check(name, refiner.enable is not True or is_nothing(refiner.checkpoint))
                case _:
                    _check(name, key in IDLE or _is_off(key, _values(value), prompts))
    faults.check()
    return Scripts(units, seed, sampler)


def is_nothing(value: object, depth: int = DEPTH) -> bool:
    """Whether a value is empty, zero, off or a word for these; of lists and mappings, whether they are off."""
    match value:
        case str():
            return len(value) < WORD_CHARS and value.strip().lower() in NOTHING
        case list():
            return depth > 0 and is_off(value, depth - 1)
        case dict():
            return depth > 0 and _unit_is_off(value, depth - 1)
        case _:
            return not value


def is_off(args: Args, depth: int = DEPTH) -> bool:
    """Whether a script with these arguments is off, by the rule above."""
    for each in args:
        if each is False or (isinstance(each, str) and each[:WORD_CHARS].strip().lower() == "false"):
            return True
        if isinstance(each, dict):
            return all(is_nothing(unit, depth) for unit in args if isinstance(unit, dict))
        if not is_nothing(each, depth):
            return False
    return True


def _is_off(key: str, args: Args, prompts: Sequence[str]) -> bool:
    args = [_with_switch(key, each) if isinstance(each, dict) else each for each in args]
    if (by_prompt := _found(BY_PROMPT, key)) is not None:
        syntax, switches = by_prompt
        return is_off(args) or not (_any_is_on(args, switches) or any(map(syntax.search, prompts)))
    known = _found(SWITCHES, key)
    if known is not None and not any(isinstance(each, dict) for each in args):
        return not _any_is_on(args, known)
    return (_found(OFF, key) or is_off)(args)


def _with_switch(key: str, unit: Mapping[str, Any]) -> dict[str, Any]:
    """A unit whose switch may have the script's name, as in `{"Soft inpainting": false}`."""
    return {"enabled" if _key(name) == key else name: value for name, value in unit.items()}


def _found(scripts: "Mapping[str, Found]", key: str) -> "Found | None":
    """The entry for a script, whose name may end with a version."""
    return next((known for name, known in scripts.items() if key.startswith(name)), None)


def _adetailer_is_off(args: Args) -> bool:
    """Whether its switch is off, or no unit has a model, which is the web UI's default."""
    units = [each for each in args if isinstance(each, dict) and each.get("ad_tab_enable") is not False]
    has_switch = bool(args) and not isinstance(args[0], dict)
    return (has_switch and is_nothing(args[0])) or all(is_nothing(each.get("ad_model")) for each in units)


def _animatediff_is_off(args: Args) -> bool:
    """Whether its switch is off, which is its default."""
    units = [each for each in args if isinstance(each, dict)]
    return all(is_nothing(each.get("enable")) for each in units) if units else is_off(args)


def _fabric_is_off(args: Args) -> bool:
    """The first arguments are liked and disliked images; then comes the switch, or in old versions a number."""
    return is_nothing(list(args[:2])) or is_off(args[2:3] if args[2:3] == [False] else args)


def _style_selector_is_off(args: Args) -> bool:
    """The switch is on by default; then come switches for random styles, and a style, of which `base` adds nothing."""
    return is_off(args) or all(is_nothing(each) or each == "base" for each in args[1:])


OFF: Mapping[str, Callable[[Args], bool]] = {
    "adetailer": _adetailer_is_off,
    "animatediff": _animatediff_is_off,
    "fabric": _fabric_is_off,
    "styleselector": _style_selector_is_off,
}


def _any_is_on(args: Args, places: Sequence[int]) -> bool:
    return any(not is_nothing(args[place]) for place in places if place < len(args))


def _unit_is_off(unit: Mapping[str, Any], depth: int) -> bool:
    """Whether its switch is off (enable, is_enabled, isActive); else whether all similar ones are (unet_enabled)."""
    names = [name.replace("_", "").lower().removeprefix("is") for name in unit]
    switches = [value for name, value in zip(names, unit.values(), strict=True) if name in SWITCH_NAMES]
    if not switches:
        switches = [value for name, value in zip(names, unit.values(), strict=True) if name.endswith(SWITCH_ENDS)]
    return all(is_nothing(value, depth) for value in switches or unit.values())


def _key(name: str) -> str:
    """A script's name for comparison: lower case, letters and digits only."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _check_seed(given: SeedArgs) -> None:
    resized = min(given.resize_from_w or 0, given.resize_from_h or 0) > 0
    _check("Seed", not given.extra or ((given.subseed_strength or 0) <= 0 and not resized))


def _check(name: str, off: bool) -> None:
    if not off:
        advice = "Switch it off or leave it out; the only script here is ControlNet."
        raise wrong(f"{FIELD}.{name}", f"The script {plain(name)} is on, but this service does not have it. {advice}")


# ------------------------------------------------------------------------------------------------------------ arguments


def _units(name: str, value: msgspec.Raw) -> list[msgspec.Raw]:
    """ControlNet's arguments, unread, as there are images in them. Raises Problem for more than any client has."""
    fields = _fields(value)
    if "args" in fields:
        value = fields["args"]
        fields = _fields(value)
    raw = bytes(value)
    if raw[:1] != b"[":
        return [value] if fields else []
    units = parsed_json(raw, _list)
    if len(units) > MAX_ITEMS:
        raise wrong(f"{FIELD}.{name}", f"{plain(name)} has {len(units)} arguments; at most {MAX_ITEMS} are allowed.")
    return units


def _fields(value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    """The fields of an object; nothing for any other value."""
    raw = bytes(value)
    return parsed_json(raw, _object) if raw[:1] == b"{" else {}


def _values(value: msgspec.Raw) -> list[Any]:
    """A script's arguments: a list in `args`, or what clients send in its place."""
    given = parsed_json(bytes(value), _any)
    if isinstance(given, dict) and "args" in given:
        given = given["args"]
    if isinstance(given, list):
        return given
    return [] if given is None or given == {} else [given]


def _named(name: str, value: msgspec.Raw, kind: "type[Kind]") -> "Kind":
    values = [None if each == "" else each for each in _values(value)]
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError:
        names = ", ".join(kind.__struct_fields__)
        raise wrong(f"{FIELD}.{name}", f"The arguments of {plain(name)} must be [{names}].") from None
