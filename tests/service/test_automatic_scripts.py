"""AUTOMATIC1111's API: scripts and settings that are off ask for nothing, and those that are on are named."""

import base64
import json
from typing import Any

import httpx
import pytest

from tests.service.automatic import ENCODED, body, client, txt2img
from tests.service.running import Service, png
from workers.engine.header import read_header

DYNAMIC_PROMPTS = [True, False, 1, False, False, False, 1.1, 1.5, 100, 0.7, False, False, True, False, False, 0, "m"]
ADETAILER = {"ad_model": "None", "ad_confidence": 0.3, "ad_inpaint_only_masked": True, "ad_tab_enable": True}
TILED_DIFFUSION = [False, "MultiDiffusion", False, True, 1024, 1024, 96, 96, 48, 4, "None", 2, False, 10, 1, 1, 64]
TILED_DIFFUSION += [False, False, False, *[False, 0.4, 0.4, 0.2, 0.2, "", "", "Background", 0.2, -1.0] * 8]
REACTOR = [None, False, "0", "0", "inswapper_128.onnx", "CodeFormer", 1, True, "None", 1, 1, False, True, 1, 0, 0]
OFF: dict[str, Any] = {
    "Seed": [-1, False, -1, 0, 0, 0],
    "Sampler": [20, "DPM++ 2M", "Automatic"],
    "Refiner": [False, "", 0.8],
    "refiner ": [True, "None", 0.8],
    "Soft Inpainting": [False, 1, 0.5, 4, 0, 0.5, 2],
    "soft  inpainting": [{"Soft inpainting": False, "Schedule bias": 1, "Preservation strength": 0.5}],
    "Extra options": [],
    "Hypertile": [],
    "Comments": [],
    "API payload": ["", True],
    "Dynamic Prompts v2.17.1": DYNAMIC_PROMPTS,
    "dynamic prompts v2.10.0": [False, True, 5],
    "ADetailer": [False, False, {"ad_model": "face_yolov8n.pt"}],
    "adetailer ": [True, False, ADETAILER, ADETAILER],
    "ADETAILER": [ADETAILER],
    "AnimateDiff": [{"enable": False, "model": "mm_sd_v15.ckpt", "video_length": 16}],
    "animatediff ": [{}],
    "Tiled Diffusion": TILED_DIFFUSION,
    "Tiled VAE": [False, 1536, 96, True, True, True, False],
    "Regional Prompter": [False, False, "Matrix", "Columns", "Mask", "Prompt", "1,1", "0.2", False, False],
    "ReActor": REACTOR,
    "reactor ": [ENCODED, *REACTOR[1:]],
    "roop": ["", False, "0", None, "GFPGAN", 1],
    "FABRIC": [[], [], False, 4, 0.0, 0.8, 0.0, 0.8, 0.5, False],
    "FreeU": [False, 0, {"enable": False}],
    "FreeU Integrated (SD 1.x, SD 2.x, SDXL)": [False, 1.01, 1.02, 0.99, 0.95, 0, 1],
    "HyperTile Integrated": [False, 256, 2, 0, False],
    "SelfAttentionGuidance Integrated (SD 1.x, SD 2.x, SDXL)": [False, 0.5, 2, 1],
    "Self Attention Guidance": [False, 0.75, 1.0],
    "Dynamic Thresholding (CFG Scale Fix)": [False, 7, 100, "Constant", 0, "Constant", 0, 4, True, "MEAN", "AD", 1],
    "Kohya HRFix Integrated": [False, 3, 2, 0, 0.35, True, "bicubic", "bicubic"],
    "LatentModifier Integrated": [False, 0, "anisotropic", 0, "reinhard", 100, 0, "subtract"],
    "StyleAlign Integrated": [False, 1],
    "Never OOM Integrated": [False, False],
    "MultiDiffusion Integrated": [False, "MultiDiffusion", 768, 768, 64, 4],
    "PerturbedAttentionGuidance Integrated": [False, 3, 0, 0, 1],
    "Latent Couple extension": [False, "1:1,1:2,1:2", "0:0,0:0,0:1", "0.2,0.8,0.8", 150],
    "Cutoff": [False, "", 0.5, False, False, "", "Lerp", False],
    "Segment Anything": [False, False, 0, None, None, 0, False, None, None, False, 0, None, False, False, 0],
    "CFG Rescale Extension": [0, False, 1.0, False],
    "NegPiP": [False],
    "LoRA Block Weight": ["NONE:0,0,0", "", True, 1, "", "", True],
    "Extra Networks": ["anything"],
    "an extension that nobody knows": [False, 3.0, "fast"],
    "one more": [None, "", 0, [], {}],
    "units": [{"is_enabled": False, "weight": 1}, {"active": False, "weight": 2}],
    "nested": [[{"enabled": False, "weight": 1}]],
    "parts": [{"unet_enabled": False, "vae_enabled": False, "tile_size": 256}],
    "inner": [{"options": {"isActive": False, "strength": 2}}],
    "Latent Mirroring": [0, 0, 0, 0, 0.25],
    "Aesthetic embeddings": [0.9, 5, "0.0001", False, "None", "", 0.1, False],
    "Style Selector for SDXL 1.0": [True, False, False, False, "base"],
    "Unprompted v10.9.3": [True, -1, True],
    "CD Tuner": [0, 0, 0, 0, 0, 0, 0, 0, 0, "0", False, False],
    "numbers as texts": ["0", "false", "1.5"],
    "ADetailer ": ["False", False, {"ad_model": "face_yolov8n.pt"}],
}
SHAPES: list[Any] = [None, {}, [], False, {"args": None}, {"args": []}, {"args": {}}]
SHAPES += [{"args": {"enabled": False, "x": 1}}, [False, 1.5], {"enabled": False, "strength": 2}]
SHAPES += [{"args": "None"}, {"args": [None]}, {"args": [[[[]]]]}]
ON: dict[str, Any] = {
    "Refiner": [True, "sdxl_refiner", 0.8],
    "Seed": [-1, True, 7, 0.3, 0, 0],
    "seed": [-1, True, -1, 0, 512, 512],
    "Soft Inpainting": [True, 1, 0.5],
    "soft  inpainting": [{"Soft inpainting": True, "Schedule bias": 1}],
    "ADetailer": [True, False, {"ad_model": "face_yolov8n.pt"}],
    "adetailer": [{"ad_model": "face_yolov8n.pt"}],
    "AnimateDiff": [{"enable": True, "model": "mm_sd_v15.ckpt"}],
    "ReActor": [ENCODED, True, "0"],
    "FABRIC": [["a.png"], [], True, 4],
    "Tiled VAE": [True, 1536],
    "Dynamic Prompts v2.17.1": [True, True, 5],
    "Segment Anything": [False, False, 0, None, None, 0, False, None, None, True],
    "CFG Rescale Extension": [0.7, False],
    "FreeU": [{"enable": True}],
    "Parts": [{"unet_enabled": False, "vae_enabled": True}],
    "Latent Mirroring": [1, 0, 0, 0, 0.25],
    "Aesthetic embeddings": [0.9, 5, "0.0001", False, "laions", "", 0.1, False],
    "Style Selector for SDXL 1.0": [True, False, False, False, "sai-anime"],
    "style selector": [True, True, False, False, "base"],
    "unknown": [True],
    "Unknown ": [0.5, False],
    "words": ["anime", 2],
    "deep": [[[[[[[[[[[[1]]]]]]]]]]]],
}


def with_scripts(scripts: dict[str, Any], **fields: Any) -> dict[str, Any]:
    request = body(fields)
    request["alwayson_scripts"] |= scripts
    return request


def info(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = json.loads(answer.json()["info"])
    return found


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code == 422, answer.text[:300]
    return str(answer.json()["detail"])


# ------------------------------------------------------------------------------------------------------------- scripts


@pytest.mark.parametrize("name", sorted(OFF))
def test_a_script_that_is_off_asks_for_nothing(echo: Service, name: str) -> None:
    for spelling in (name, name.upper(), name.lower()):
        for given in ({"args": OFF[name]}, OFF[name]):
            answer = txt2img(echo, with_scripts({spelling: given}))
            assert (answer.status_code, len(answer.json().get("images", []))) == (200, 1), answer.text[:300]


@pytest.mark.parametrize("given", SHAPES, ids=str)
def test_arguments_that_say_nothing_may_have_any_shape(echo: Service, given: Any) -> None:
    for name in ("ADetailer", "Seed", "Sampler", "Refiner", "sd_forge_controlnet", "an unknown one"):
        answer = txt2img(echo, with_scripts({name: given}))
        if name in {"Seed", "Sampler", "Refiner"} and answer.status_code == 422:
            assert "must be [" in refusal(answer)  # these have numbers, which an object is not
        elif name == "sd_forge_controlnet" and given == {"enabled": False, "strength": 2}:
            assert answer.status_code == 200
        else:
            assert answer.status_code == 200, (name, answer.text[:300])


def test_an_object_without_fields_may_be_a_list(echo: Service) -> None:
    """As PHP writes it."""
    assert txt2img(echo, body({"override_settings": []})).status_code == 200
    assert "0 ControlNet units" in refusal(txt2img(echo, body({"alwayson_scripts": []})))
    for name in ("override_settings", "alwayson_scripts"):
        assert name in refusal(txt2img(echo, body({name: ["x"]})))


def test_all_scripts_that_are_off_come_at_once(echo: Service) -> None:
    assert txt2img(echo, with_scripts({name: {"args": args} for name, args in OFF.items()})).status_code == 200


@pytest.mark.parametrize("name", sorted(ON))
def test_a_script_that_is_on_is_refused_by_its_name(echo: Service, name: str) -> None:
    told = refusal(txt2img(echo, with_scripts({name: {"args": ON[name]}})))
    assert told.lower().startswith(f"the script {name} is on, but this service does not have it.".lower())
    assert "Switch it off or leave it out" in told


def test_every_script_that_is_on_is_told_in_one_answer(echo: Service) -> None:
    told = refusal(txt2img(echo, with_scripts({"one": [True], "two": [True], "Seed": [1]}, tiling=True)))
    assert all(name in told for name in ("script one", "script two", "tiling"))


def test_dynamic_prompts_is_on_when_the_prompt_uses_it(echo: Service) -> None:
    scripts = {"Dynamic Prompts v2.17.1": {"args": DYNAMIC_PROMPTS}}
    for prompt in ("a {red|blue} circle", "a __colour__ circle", "{2$$red|blue|green} circle"):
        assert "Dynamic Prompts" in refusal(txt2img(echo, with_scripts(scripts, prompt=prompt)))
    assert txt2img(echo, with_scripts(scripts, prompt="a {red} circle, snake_case")).status_code == 200
    unprompted = {"Unprompted v10.9.3": {"args": OFF["Unprompted v10.9.3"]}}
    assert "Unprompted" in refusal(txt2img(echo, with_scripts(unprompted, prompt="a [choose]red|blue[/choose] circle")))


def test_the_seed_and_the_steps_of_scripts_count_where_the_fields_say_none(echo: Service) -> None:
    scripts = {"Seed": {"args": ["1234", False, -1, 0, 0, 0]}, "Sampler": {"args": [7, "Euler a", "Karras"]}}
    for unset in ({}, {"seed": -1}, {"seed": None, "steps": None}):
        found = info(txt2img(echo, with_scripts(scripts, **unset)))
        assert (found["seed"], found["steps"]) == (1234, 7)
        assert "The sampler is UniPC, not Euler a." in found["notes"]
    found = info(txt2img(echo, with_scripts(scripts, seed=5, steps=3)))
    assert (found["seed"], found["steps"]) == (5, 3)
    assert "The field steps was used; the script Sampler says otherwise." in found["notes"]
    assert "The field seed was used; the script Seed says otherwise." in found["notes"]
    assert "steps is 51" in refusal(txt2img(echo, with_scripts({"Sampler": [51]})))


def test_the_arguments_of_seed_are_understood_or_refused(echo: Service) -> None:
    odd: list[list[Any]] = [["x"], [-1, "maybe"], [-1, True, -1, "nan"], [1.5], [[]], [10**4000], ["9" * 5000]]
    for args in odd:
        answer = txt2img(echo, with_scripts({"Seed": {"args": args}}))
        assert answer.status_code in {400, 422}, args
        assert len(answer.content) < 4096


# --------------------------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    "fields",
    [
        {"enable_hr": False, "hr_scale": 2, "hr_upscaler": "Latent", "hr_second_pass_steps": 0, "hr_resize_x": 0},
        {"hr_checkpoint_name": None, "hr_sampler_name": "Use same sampler", "hr_prompt": "", "denoising_strength": 0.7},
        {"firstphase_width": 0, "firstphase_height": 0, "firstpass_image": None},
        {"styles": []},
        {"styles": ["", "None"]},
        {"subseed": 17, "subseed_strength": 0, "seed_resize_from_w": 0, "seed_resize_from_h": -1},
        {"refiner_checkpoint": "", "refiner_switch_at": 0.8},
        {"refiner_checkpoint": "None"},
        {"script_name": "None", "script_args": []},
        {"script_name": None, "script_args": [1, "x"]},
        {"eta": 1.0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0, "s_noise": 1, "s_min_uncond": 0},
        {"eta": None, "s_churn": None, "s_tmax": None, "s_noise": None},
        {"disable_extra_networks": False, "comments": {}, "save_images": False, "infotext": None, "tiling": None},
        {"do_not_save_samples": True, "do_not_save_grid": True, "override_settings_restore_afterwards": True},
        {"distilled_cfg_scale": 3.5, "hr_additional_modules": None, "sampler_index": "Euler", "scheduler": "Automatic"},
    ],
    ids=", ".join,
)
def test_a_field_at_its_default_asks_for_nothing(echo: Service, fields: dict[str, Any]) -> None:
    assert txt2img(echo, body(fields)).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [("eta", 0.5), ("s_churn", 5), ("s_noise", 1.1), ("s_min_uncond", 0.2), ("save_images", True), ("infotext", "x")],
)
def test_a_field_that_cannot_be_followed_is_named(echo: Service, name: str, value: Any) -> None:
    assert refusal(txt2img(echo, body({name: value}))).startswith(f"{name} is ")


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(("wanted", "kind"), [("png", "PNG"), ("jpg", "JPEG"), ("JPEG", "JPEG"), ("webp", "WebP")])
def test_the_format_of_the_files_is_followed(echo: Service, wanted: str, kind: str) -> None:
    answer = txt2img(echo, body({"override_settings": {"samples_format": wanted}, "batch_size": 2}))
    files = [base64.b64decode(image) for image in answer.json()["images"]]
    assert [read_header(file).format for file in files] == [kind, kind]


def test_the_files_tell_what_made_them_unless_a_request_says_otherwise(echo: Service) -> None:
    def file(**settings: Any) -> bytes:
        return base64.b64decode(txt2img(echo, body({"override_settings": settings})).json()["images"][0])

    for told in (file(), file(enable_pnginfo=True), file(enable_pnginfo=None), file(enable_pnginfo="")):
        assert b"a circle" in told
    assert b"a circle" not in file(enable_pnginfo=False)


@pytest.mark.parametrize(
    "settings",
    [
        {"sd_model_checkpoint": "echo.safetensors [0123abcd]", "sd_vae": "None", "CLIP_stop_at_last_layers": 1},
        {"sd_model_checkpoint": "", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": "1", "samples_format": None},
        {"jpeg_quality": 80, "webp_lossless": False, "samples_save": True, "grid_save": True, "return_grid": False},
        {"jpeg_quality": 95, "samples_format": "jpg"},
        {"eta_noise_seed_delta": 0, "emphasis": "Original", "comma_padding_backtrack": 20, "token_merging_ratio": 0},
        {"sd_unet": "Automatic", "sd_hypernetwork": "None", "hypertile_enable_unet": False, "randn_source": "CPU"},
        {"forge_additional_modules": [], "live_previews_enable": False, "show_progress_every_n_steps": 5},
        {"jpeg_quality": "95", "samples_format": "jpg", "webp_lossless": True},
        {
            "enable_batch_seeds": True,
            "emphasis": "None",
            "eta_ancestral": "1",
            "uni_pc_order": "",
            "forge_preset": "sd",
        },
        {"control_net_no_detectmap": True, "control_net_unit_count": 3, "hires_fix_refiner_pass": "second pass"},
        {
            "sdxl_refiner_high_aesthetic_score": 6.0,
            "fp8_storage": "Disable",
            "ESRGAN_tile": 192,
            "img_max_size_mp": 200,
        },
    ],
    ids=", ".join,
)
def test_a_setting_at_its_default_asks_for_nothing(echo: Service, settings: dict[str, Any]) -> None:
    assert txt2img(echo, body({"override_settings": settings})).status_code == 200


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"samples_format": "avif"}, "samples_format is 'avif'; it must be one of png, jpg, jpeg, webp."),
        ({"samples_format": "jpg", "jpeg_quality": 80}, "jpeg_quality is 80, but files are written at 95"),
        ({"samples_format": ["png"]}, "samples_format is ['png']"),
        ({"sd_vae": "kl-f8.pt"}, "sd_vae is 'Automatic' here"),
        (
            {"sd_checkpoint_hash": "6ce0161689"},
            "sd_checkpoint_hash is '6ce0161689', but this service has no such setting.",
        ),
        ({"token_merging_ratio": 0.5}, "token_merging_ratio is 0.5, but this service has no such setting."),
        ({"emphasis": "No norm"}, "emphasis is 'No norm', but"),
        ({"enable_batch_seeds": False}, "enable_batch_seeds is false, but"),
        ({"initial_noise_multiplier": 0}, "initial_noise_multiplier is 0, but"),
        ({"samples_format": "webp", "webp_lossless": True}, "webp_lossless is on, but only PNG is lossless here"),
        ({"hypertile_enable_unet": True}, "samples_format and enable_pnginfo can be chosen"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_named(echo: Service, settings: dict[str, Any], told: str) -> None:
    assert told in refusal(txt2img(echo, body({"override_settings": settings})))


def test_the_format_of_the_service_is_not_changed_by_a_request(echo: Service) -> None:
    assert echo.client.post("/sdapi/v1/options", json={"samples_format": "png"}).status_code == 200
    refused = echo.client.post("/sdapi/v1/options", json={"samples_format": "jpg", "enable_pnginfo": False})
    assert "samples_format is 'png' here" in refusal(refused)
    assert "enable_pnginfo is True here" in refusal(refused)


# -------------------------------------------------------------------------------------------------------------- prompts


def test_prompt_syntax_is_plain_words_and_the_answer_says_so_once(echo: Service) -> None:
    prompt = "a (red:1.3) circle BREAK ((shiny)) [dull] AND <lora:paint:0.8>"
    found = info(txt2img(echo, body({"prompt": prompt, "negative_prompt": "(blur:1.2)", "batch_size": 2})))
    told = [note for note in found["notes"] if "prompt syntax" in note]
    assert told == [
        "The web UI's prompt syntax has no effect here and was read as plain words: "
        "(red:1.3), [dull], BREAK, AND, <lora:paint:0.8>, (blur:1.2)."
    ]
    assert found["prompt"] == prompt
    for plain in ("a circle :) and a square", r"a circle \(of sorts\)", "1) a circle", "a break and a circle", "a < b"):
        assert info(txt2img(echo, body({"prompt": plain})))["notes"] == []


def test_a_note_is_short_whatever_the_prompt(echo: Service) -> None:
    for text in ("(" + "x" * 9000 + ")", "(" * 9000, "[" * 4000 + "x" + "]" * 4000, "<lora:" * 1500):
        assert len("".join(info(txt2img(echo, body({"prompt": text})))["notes"])) < 400


def test_a_prompt_that_was_cut_is_told(demo: Service) -> None:
    found = info(txt2img(demo, body({"prompt": "a red circle, " * 100, "steps": 1})))
    assert any("prompt" in note and "token" in note for note in found["notes"]), found["notes"]


# --------------------------------------------------------------------------------------------------------- whole bodies


def test_a_body_with_the_web_uis_scripts_as_they_are_gets_its_image(echo: Service) -> None:
    """As a plugin sends it: three units, and every script switched off."""
    image = base64.b64encode(png(256, 256)).decode()
    canny = {"enabled": True, "module": "canny", "image": image, "weight": 1, "threshold_a": 100, "threshold_b": 200}
    scripts: dict[str, Any] = {name: {"args": OFF[name]} for name in ("Seed", "Refiner", "Sampler", "ADetailer")}
    scripts["AnimateDiff"] = {"args": [{"enable": False}]}
    scripts["ControlNet"] = {"args": [canny, {"enabled": False}, {"enabled": False}]}
    answer = txt2img(echo, {"prompt": "a red heart", "steps": 5, "alwayson_scripts": scripts})
    assert len(answer.json()["images"]) == 1
    assert info(answer)["steps"] == 5


def test_webuiapi_sends_extensions_that_are_off(echo: Service) -> None:
    import webuiapi
    from PIL import Image

    with client(echo) as api:
        result = api.txt2img(
            prompt="a circle",
            controlnet_units=[webuiapi.ControlNetUnit(image=Image.new("RGB", (64, 64)), module="canny")],
            adetailer=[webuiapi.ADetailer()],
            animatediff=webuiapi.AnimateDiff(enable=False),
            reactor=webuiapi.ReActor(img=Image.new("RGB", (8, 8)), enable=False),
            roop=webuiapi.Roop(img=Image.new("RGB", (8, 8)), enable=False),
            sag=webuiapi.Sag(enable=False),
        )
    assert len(result.images) == 1
