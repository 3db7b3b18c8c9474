"""The JSON in `info`: what the images were made with, and what of the request was not followed."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from app.api.automatic1111.jobs import Job
from app.api.automatic1111.parse import ParsedRequest
from app.api.automatic1111.structs import Info
from app.api.generation import warnings_of
from app.generator import GeneratedImage
from app.settings import Settings
from workers.engine.contract import resolved
from workers.engine.header import Header, read_header
from workers.engine.metadata import CONTROLNET, Metadata, sampler_name

SCHEDULE = "automatic"
# No pattern backtracks, as a prompt may have thousands of characters. Escaped characters, as in \(this\), are text.
ESCAPED = re.compile(r"\\.", re.DOTALL)
SYNTAX = [
    re.compile(pattern)
    for pattern in (
        r"\([^()]++\)",  # (word), ((word)), (word:1.3)
        r"\[[^\[\]]++\]",  # [word], [from:to:0.5], [one|other]
        r"\bBREAK\b",
        r"\bAND\b",
        r"<\w++:[^<>]*+>",  # <lora:name:1>
    )
]
SHOWN_CHARS = 60


def info(
    parsed: ParsedRequest, generated: Sequence[GeneratedImage], settings: Settings, metadata: Metadata, job: Job
) -> Info:
    """The parameters of the images, as requested or configured."""
    engine, params, images = settings.engine, parsed.params, parsed.params.number_of_images
    header, seeds, options = read_header(generated[0].file), params.seeds(), resolved(params.options, engine)
    sampler = sampler_name(engine)
    size = (header.width, header.height)
    return Info(
        prompt=params.text,
        all_prompts=[params.text] * images,
        negative_prompt=options.negative_prompt,
        all_negative_prompts=[options.negative_prompt] * images,
        seed=seeds[0],
        all_seeds=seeds,
        subseed=seeds[0],
        all_subseeds=seeds,
        width=header.width,
        height=header.height,
        sampler_name=sampler,
        cfg_scale=options.guidance_scale,
        steps=options.steps,
        batch_size=parsed.request.batch_size or 1,
        sd_model_name=settings.server.model_name,
        extra_generation_params={CONTROLNET: metadata.control(params.options)},
        infotexts=[metadata.infotext(replace(parsed.made_from, seed=seed), size) for seed in seeds],
        job_timestamp=job.timestamp,
        task_id=job.task_id,
        notes=[*_notes(parsed, header, (sampler, engine.sampler.name)), *warnings_of(generated)],
    )


def _notes(parsed: ParsedRequest, header: Header, sampler: tuple[str, str]) -> Iterator[str]:
    """Notes on fields that every client sends, often without meaning them; they are not refused."""
    request = parsed.request
    yield from parsed.notes
    yield from _syntax_note(request.prompt, request.negative_prompt)
    given = request.sampler_name or request.sampler_index
    if given and given not in sampler:
        yield f"The sampler is {sampler[0]}, not {given}."
    if request.scheduler and request.scheduler.lower() != SCHEDULE:
        yield f"The noise schedule is that of the sampler, not {request.scheduler}."
    size = (request.width or header.width, request.height or header.height)
    if size != (header.width, header.height):
        text = f"The size is {header.width} x {header.height}, not {size[0]} x {size[1]}"
        yield f"{text}: it follows the image whose edges are kept."


def _syntax_note(*prompts: str | None) -> Iterator[str]:
    """A sentence that quotes the web UI's prompt syntax, which is read as plain words here."""
    found = dict.fromkeys(each for prompt in prompts for each in _syntax(prompt or ""))
    if found:
        yield f"The web UI's prompt syntax has no effect here and was read as plain words: {', '.join(found)}."


def _syntax(prompt: str) -> Iterator[str]:
    """The first match of each pattern."""
    text = ESCAPED.sub("", prompt)
    for pattern in SYNTAX:
        if match := pattern.search(text):
            yield match.group() if len(match.group()) <= SHOWN_CHARS else f"{match.group()[:SHOWN_CHARS]}..."
