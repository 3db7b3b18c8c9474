"""The names of the samplers: the schedulers of diffusers that `sampler.py` can turn into a matrix.

They are listed here because importing diffusers takes seconds. A test holds the list to diffusers.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from workers.engine.config import Sampler
from workers.schema import show

SAMPLERS = (
    "CogVideoXDDIMScheduler",
    "DDIMInverseScheduler",
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepInverseScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
NEED_SCIPY = ("LMSDiscreteScheduler",)
# The names of diffusers' classes in AUTOMATIC1111's web UI, where it has one (diffusers' documentation has the table).
WEB_UI_NAMES = {
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "DPMSolverSinglestepScheduler": "DPM++ SDE",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "EulerDiscreteScheduler": "Euler",
    "HeunDiscreteScheduler": "Heun",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "KDPM2DiscreteScheduler": "DPM2",
    "LCMScheduler": "LCM",
    "LMSDiscreteScheduler": "LMS",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}
PROVEN_STEPS = range(1, 51)  # a test tries each sampler with the first, the last and 20, on the schedules below
LEAST_STEPS = {"PNDMScheduler": 4}
# The values in a model's `scheduler_config.json` with which the samplers were tried; an empty tuple allows any value.
_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "_class_name": (),
    "_diffusers_version": (),
    "beta_end": (0.012, 0.02),
    "beta_schedule": ("scaled_linear", "linear"),
    "beta_start": (0.00085, 0.0001),
    "clip_sample": (False,),
    "clip_sample_range": (),
    "dynamic_thresholding_ratio": (),
    "num_train_timesteps": (1000,),
    "prediction_type": ("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": (False,),
    "sample_max_value": (),
    "set_alpha_to_one": (True, False),
    "skip_prk_steps": (True,),
    "steps_offset": (0, 1),
    "thresholding": (False,),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "trained_betas": (None,),
}


def unknown(name: str) -> str | None:
    """Return the problem with a sampler's name, or None."""
    known = (*SAMPLERS, *NEED_SCIPY)
    if name in known:
        return None
    near = _nearest(
        _short(name), {_short(word): each for each in known for word in (each, WEB_UI_NAMES.get(each, each))}
    )
    rest = f"did you mean {near}?" if near else f"allowed: {', '.join(known)}"
    return f"is {show(name)}, which is not a sampler that this engine supports; {rest}"


def _nearest(name: str, known: Mapping[str, str]) -> str | None:
    """The sampler whose short name begins with `name`, or else is most like it."""
    begin = sorted((each for each in known if name and each.startswith(name)), key=len)
    near = begin or difflib.get_close_matches(name, known, n=1)
    return known[near[0]] if near else None


def _short(name: str) -> str:
    return name.lower().removesuffix("scheduler").replace("_", "").replace(" ", "")


def is_proven(sampler: Sampler, base: Mapping[str, Any]) -> bool:
    """Whether a sampler is known to work and need not be tried. `base` is the model's `scheduler_config.json`."""
    plain = "clip_sample" in base and all(
        key in _PLAIN and (not _PLAIN[key] or value in _PLAIN[key]) for key, value in base.items()
    )
    proven = sampler.steps in PROVEN_STEPS and sampler.steps >= LEAST_STEPS.get(sampler.name, 1)
    return plain and proven and sampler.name in SAMPLERS and not sampler.options
