"""What a call of the model says of the picture that it will be: the denoised latents, as rows of the sampler's matrix.

What the model sees in a call is sqrt(abar) x0 + sqrt(1 - abar) eps, whatever the sampler: it was trained so, and
`scale_model_input` sees to it. abar is the schedule's at the timestep that the model is told. So x0 follows from the
model's input and its answer, and as the input is a row of the matrix times the inputs, x0 is as well.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def estimates(scheduler: Any, inputs: Tensor, answers: Tensor, timesteps: Tensor) -> Tensor | None:
    """x0 after each of N calls [N, columns], float64, from rows [N, columns] that make their model inputs and answers.

    `timesteps` [N] are what the model is told. None for a scheduler that does not tell its noise schedule, or whose
    model answers with something else than noise, velocity or picture.
    """
    schedule = getattr(scheduler, "alphas_cumprod", None)
    if schedule is None:
        return None
    level = np.interp(timesteps.double().numpy(), np.arange(len(schedule)), schedule.double().numpy())
    signal, noise = (torch.from_numpy(part**0.5)[:, None] for part in (level, 1 - level))
    match scheduler.config.prediction_type:
        case "epsilon":
            return (inputs - noise * answers) / signal
        case "v_prediction":
            return signal * inputs - noise * answers
        case "sample":
            return answers
        case _:
            return None
