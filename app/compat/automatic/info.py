"""What is told of images that were made: the JSON in `info`, and the text that the web UI writes below an image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from app.compat.automatic import prompts
from app.compat.automatic.asking import Asked
from app.compat.automatic.jobs import Job
from app.compat.automatic.structs import Info
from app.fields import Rules
from app.generation import warnings_of
from app.making import Picture
from app.settings import Settings
from workers.engine.header import Header, read_header
from workers.engine.metadata import CONTROLNET, Metadata, sampler_name

SCHEDULE = "automatic"


def info(asked: Asked, pictures: Sequence[Picture], settings: Settings, metadata: Metadata, job: Job) -> Info:
    """What the images were made with: what was asked for, else what is configured."""
    engine, options, wanted = settings.engine, asked.wanted.options, asked.wanted
    header, seeds = read_header(pictures[0].file), wanted.seeds()
    negative = engine.prompt.negative if options.negative is None else options.negative
    steps = Rules.of(settings).steps if options.steps is None else options.steps
    guidance = engine.guidance_scale if options.guidance_scale is None else options.guidance_scale
    sampler = sampler_name(engine)
    size = (header.width, header.height)
    return Info(
        prompt=wanted.text,
        all_prompts=[wanted.text] * wanted.images,
        negative_prompt=negative,
        all_negative_prompts=[negative] * wanted.images,
        seed=seeds[0],
        all_seeds=seeds,
        subseed=seeds[0],
        all_subseeds=seeds,
        width=header.width,
        height=header.height,
        sampler_name=sampler,
        cfg_scale=guidance,
        steps=steps,
        batch_size=asked.request.batch_size or 1,
        sd_model_name=settings.server.model_name,
        extra_generation_params={CONTROLNET: metadata.control(options)},
        infotexts=[metadata.infotext(replace(asked.made_from, seed=seed), size) for seed in seeds],
        job_timestamp=job.timestamp,
        task_id=job.task_id,
        notes=[*_notes(asked, header, (sampler, engine.sampler.name)), *warnings_of(pictures)],
    )


def _notes(asked: Asked, header: Header, sampler: tuple[str, str]) -> Iterator[str]:
    """What every client sends, and many do not mean, is not refused."""
    request = asked.request
    yield from asked.notes
    yield from prompts.notes(request.prompt, request.negative_prompt)
    given = request.sampler_name or request.sampler_index
    if given and given not in sampler:
        yield f"The sampler is {sampler[0]}, not {given}."
    if request.scheduler and request.scheduler.lower() != SCHEDULE:
        yield f"The noise schedule is that of the sampler, not {request.scheduler}."
    size = (request.width or header.width, request.height or header.height)
    if size != (header.width, header.height):
        text = f"The size is {header.width} x {header.height}, not {size[0]} x {size[1]}"
        yield f"{text}: it follows the image whose edges are kept."
