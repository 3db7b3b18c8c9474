"""What is sent and answered for pictures, by the names of AUTOMATIC1111's `modules/api/models.py`.

Each field may be null there, and then has its default.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Times = Annotated[int, Meta(ge=1)]


class Script(msgspec.Struct, frozen=True):
    """The arguments of an extension."""

    args: list[msgspec.Raw] = []


class MaskedImage(msgspec.Struct, frozen=True):
    """A picture with a mask; there may be none."""

    image: str
    mask: str | None = None


class ControlNetUnit(msgspec.Struct, frozen=True, kw_only=True):
    """An argument of ControlNet: the picture, in base64 or as a data: URL, and how its edges count.

    `weight` is control_scale; `threshold_a` and `threshold_b` are canny_low and canny_high, as configured if they are
    negative. `processor_res`, `pixel_perfect`, `resize_mode` and the like change nothing: the size follows the picture.
    """

    enabled: bool | None = True
    module: str | None = None
    model: str | None = None
    image: str | MaskedImage | None = None
    input_image: str | MaskedImage | None = None  # what it was called once
    weight: float | None = None
    threshold_a: float | None = None
    threshold_b: float | None = None
    guidance_start: float | None = 0.0
    guidance_end: float | None = 1.0
    control_mode: int | str | None = 0
    mask: Any = None
    mask_image: Any = None
    effective_region_mask: Any = None
    advanced_weighting: Any = None
    guessmode: bool | None = False
    guess_mode: bool | None = False


class Txt2ImgRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body. `cfg_scale` is guidance_scale, `batch_size` times `n_iter` is number_of_images, seed -1 draws one.

    One picture is needed, in the arguments of ControlNet. Sampler, scheduler and size may be anything: `info` tells
    what they were. Unknown fields are ignored.
    """

    prompt: str | None = ""
    negative_prompt: str | None = None
    seed: int | None = -1
    steps: int | None = None
    cfg_scale: float | None = None
    batch_size: Times | None = 1
    n_iter: Times | None = 1
    width: int | None = None
    height: int | None = None
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    send_images: bool | None = True
    alwayson_scripts: dict[str, Script] | None = None
    override_settings: dict[str, Any] | None = None
    enable_hr: bool | None = False
    restore_faces: bool | None = False
    tiling: bool | None = False
    styles: list[str] | None = None
    script_name: str | None = None
    refiner_checkpoint: str | None = None
    subseed_strength: float | None = 0.0
    seed_resize_from_w: int | None = -1
    seed_resize_from_h: int | None = -1


class Txt2ImgAnswer(msgspec.Struct, frozen=True):
    """The pictures as PNGs in base64, the request without its scripts, and an `Info` as JSON in a string."""

    images: list[str]
    parameters: Txt2ImgRequest
    info: str


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """What was made, and with which values. `notes` say what was not done as asked for."""

    prompt: str
    all_prompts: list[str]
    negative_prompt: str
    all_negative_prompts: list[str]
    seed: int
    all_seeds: list[int]
    subseed: int
    all_subseeds: list[int]
    subseed_strength: float = 0.0
    width: int
    height: int
    sampler_name: str
    cfg_scale: float
    steps: int
    batch_size: int
    restore_faces: bool = False
    sd_model_name: str
    sd_model_hash: str | None = None
    extra_generation_params: dict[str, str]
    index_of_first_image: int = 0
    infotexts: list[str]
    styles: list[str] = []
    job_timestamp: str
    clip_skip: int = 1
    notes: list[str]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Of a request in hand; zeros while there is none."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressAnswer(msgspec.Struct, frozen=True):
    """How far the client's latest request is, from 0 to 1; about how many seconds are left; what it looks like so far,
    as a small JPEG in base64."""

    progress: float
    eta_relative: float
    state: State
    current_image: str | None = None
    textinfo: str | None = None


class Nothing(msgspec.Struct, frozen=True):
    """An answer with nothing to say."""


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of an error."""

    error: str
    detail: str
    errors: str
    body: str = ""
