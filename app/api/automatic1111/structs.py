"""Requests and answers for images, with the names of AUTOMATIC1111's `modules/api/models.py`.

Each field may be null there, and then has its default. Every text, list and number is bounded by its type, as the
answer quotes most of them. Images are bounded by the body's limit, prompts by `Rules`.
"""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta
from starlette.responses import Response

from app.errors import Error, Problem, problem_headers

MAX_NAME = 200  # characters
MAX_ITEMS = 100  # of a list or an object: the web UI's extensions have about 50 arguments at most

Name = Annotated[str, Meta(max_length=MAX_NAME)]
Times = Annotated[int, Meta(ge=1, le=1000)]
Whole = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
# A text such as "nan" or "inf" is a float to msgspec where it takes numbers as texts. These bounds refuse both.
Number = Annotated[float, Meta(ge=-1e6, le=1e6)]
Plain: TypeAlias = bool | Whole | Number | Name | None
Empty: TypeAlias = Annotated[list[None], Meta(max_length=0)]  # what PHP makes of an object without fields
Setting: TypeAlias = Plain | Annotated[list[Plain], Meta(max_length=MAX_ITEMS)]


class MaskedImage(msgspec.Struct, frozen=True):
    """An image with a mask; there may be none."""

    image: str | None = None
    mask: str | None = None


Pair = Annotated[list[str | None], Meta(max_length=2)]  # an image, and perhaps a mask


class ControlNetUnit(msgspec.Struct, frozen=True, kw_only=True):
    """An argument of ControlNet: the image, in base64 or as a data: URL, and how its edges count.

    `module`: canny finds edges in the image; none takes it as an edge map, white on black. Thresholds are as configured
    if they are negative. A mask must be blank. `pixel_perfect`, `resize_mode` and `hr_option` change nothing, as the
    size follows the image.
    """

    enabled: bool | None = True
    module: Name | None = None
    model: Name | None = None
    image: str | MaskedImage | Pair | None = None
    input_image: str | MaskedImage | Pair | None = None  # what it was called once
    weight: Number | None = None
    threshold_a: Number | None = None
    threshold_b: Number | None = None
    guidance_start: Number | None = 0.0
    guidance_end: Number | None = 1.0
    guidance: Number | None = None  # what guidance_end was called once
    control_mode: Whole | Name | None = 0
    processor_res: Number | None = None
    pixel_perfect: bool | None = False
    resize_mode: Whole | Name | None = None
    mask: str | None = None
    mask_image: str | None = None
    effective_region_mask: str | None = None
    advanced_weighting: Any = None
    guessmode: bool | None = False
    guess_mode: bool | None = False
    input_mode: Name | None = None
    batch_images: Any = None
    loopback: bool | None = False
    use_preview_as_input: bool | None = False
    ipadapter_input: Any = None
    animatediff_batch: bool | None = False


class Txt2ImgRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body. `cfg_scale` is guidance_scale, `batch_size` times `n_iter` is number_of_images, seed -1 draws one.

    One image is needed, in the arguments of ControlNet. Scripts that are off ask for nothing; what is on is refused by
    name. Sampler, scheduler and size may be anything: `info` tells what they were. `force_task_id` names the request
    for `progress` and `interrupt`: choose one that nobody guesses. Unknown fields are ignored.
    """

    prompt: str | None = ""
    negative_prompt: str | None = None
    seed: int | None = -1
    steps: Whole | None = None
    cfg_scale: Number | None = None
    batch_size: Times | None = 1
    n_iter: Times | None = 1
    width: Whole | None = None
    height: Whole | None = None
    sampler_name: Name | None = None
    sampler_index: Name | None = None
    scheduler: Name | None = None
    force_task_id: Name | None = None
    send_images: bool | None = True
    alwayson_scripts: Annotated[dict[Name, msgspec.Raw], Meta(max_length=MAX_ITEMS)] | Empty | None = None
    override_settings: Annotated[dict[Name, Setting], Meta(max_length=MAX_ITEMS)] | Empty | None = None
    enable_hr: bool | None = False
    restore_faces: bool | None = False
    tiling: bool | None = False
    styles: Annotated[list[Name], Meta(max_length=MAX_ITEMS)] | None = None
    script_name: Name | None = None
    refiner_checkpoint: Name | None = None
    subseed_strength: Number | None = 0.0
    seed_resize_from_w: Whole | None = -1
    seed_resize_from_h: Whole | None = -1
    eta: Number | None = None
    s_churn: Number | None = None
    s_noise: Number | None = None
    s_min_uncond: Number | None = None
    save_images: bool | None = False
    infotext: str | None = None

    @property
    def scripts(self) -> dict[str, msgspec.Raw]:
        return self.alwayson_scripts if isinstance(self.alwayson_scripts, dict) else {}

    @property
    def settings(self) -> dict[str, Setting]:
        return self.override_settings if isinstance(self.override_settings, dict) else {}


class Txt2ImgAnswer(msgspec.Struct, frozen=True):
    """The images in base64, the request without its scripts, and an `Info` as JSON in a string.

    They are PNGs, unless `override_settings.samples_format` says jpg or webp.
    """

    images: list[str]
    parameters: Txt2ImgRequest
    info: str


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of the images. `notes` say what was not followed; `task_id` names the request."""

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
    task_id: str
    clip_skip: int = 1
    notes: list[str]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a running request; zeros if there is none."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class JobName(msgspec.Struct, frozen=True, kw_only=True):
    """Names a running request of the client, in any of these fields: its `force_task_id`, or its request id.

    The request id is in the answer's X-Request-Id, in `info.task_id` and in the progress's `current_task`.
    """

    id_task: Name | None = None
    force_task_id: Name | None = None
    task_id: Name | None = None

    @property
    def name(self) -> str:
        """The first that is given; else empty."""
        return self.id_task or self.force_task_id or self.task_id or ""


class ProgressAnswer(msgspec.Struct, frozen=True):
    """A request's progress from 0 to 1, the estimated seconds left, a preview (a small JPEG in base64), and its name.
    `textinfo` says how many images start before it, or how to name a request if none is shown."""

    progress: float
    eta_relative: float
    state: State
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None


class InterruptAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """Empty; but `textinfo` says how to name a request where none was ended."""

    textinfo: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of an error."""

    error: str
    detail: str
    errors: str
    body: str = ""


def respond(problem: Problem) -> Response:
    """The response for a problem, in AUTOMATIC1111's form."""
    body = ErrorAnswer(problem.error.title, problem.detail, problem.detail)
    return Response(msgspec.json.encode(body), problem.error.status, problem_headers(problem), "application/json")


def wrong(field: str, detail: str) -> Problem:
    return Problem(Error.INVALID_FIELD, detail, field)
