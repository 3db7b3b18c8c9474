"""AUTOMATIC1111's API, by a client from PyPI that many scripts use, and by plain HTTP."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import webuiapi
from PIL import Image

from example.demo_model.scenes import flat_scenes
from example.demo_model.scoring import colours
from tests.service.automatic import ENCODED, NOISE, body, client, txt2img, unit
from tests.service.running import Service, pixels_of


def refusal(response: httpx.Response) -> str:
    answer = response.json()
    assert response.status_code == 422, answer
    assert answer.keys() == {"error", "detail", "errors", "body"}
    assert answer["error"] in {"A field is missing or wrong", "The image cannot be read"}
    assert answer["errors"] == answer["detail"]
    return str(answer["detail"])


@pytest.fixture
def api(echo: Service) -> Iterator[Any]:
    with client(echo) as made:
        yield made


# ------------------------------------------------------------------------------------------------------------- images


def test_the_client_gets_its_images_and_is_told_what_they_are(api: Any) -> None:
    unit_ = unit(weight=0.5, threshold_a=90, threshold_b=180)
    result = api.txt2img(
        prompt="a circle", negative_prompt="blur", seed=41, batch_size=2, n_iter=2, controlnet_units=[unit_]
    )
    assert [np.array_equal(np.asarray(image), NOISE) for image in result.images] == [True] * 4
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in result.json["images"])
    info = result.info
    assert (info["seed"], info["all_seeds"], info["batch_size"]) == (41, [41, 42, 43, 44], 2)
    assert (info["width"], info["height"], info["steps"], info["cfg_scale"]) == (64, 96, 20, 7.0)
    assert info["extra_generation_params"] == {
        "ControlNet 0": "Module: canny, Model: echo-canny, Weight: 0.5, Threshold A: 90, Threshold B: 180"
    }
    assert info["infotexts"][1].startswith(
        "a circle\nNegative prompt: blur\nSteps: 20, Sampler: UniPC, CFG scale: 7, Seed: 42"
    )
    assert (result.parameters["seed"], result.parameters["alwayson_scripts"]) == (41, {})


def test_options_that_were_not_followed_are_noted(api: Any) -> None:
    noted = api.txt2img(prompt="a circle", scheduler="Karras", controlnet_units=[unit()]).info["notes"]
    assert noted == [
        "The sampler is UniPC, not Euler a.",
        "The noise schedule is that of the sampler, not Karras.",
        "The size is 64 x 96, not 512 x 512: it follows the image whose edges are kept.",
    ]


def test_missing_fields_are_as_configured(echo: Service) -> None:
    answer = txt2img(echo, body(threshold_a=-1)).json()
    info = json.loads(answer["info"])
    assert (info["steps"], info["cfg_scale"], info["notes"]) == (1, 7.5, [])
    assert info["extra_generation_params"]["ControlNet 0"].endswith("Weight: 1, Threshold A: 100, Threshold B: 200")


@pytest.mark.parametrize("seed", [-1, None])
def test_a_seed_is_drawn_and_told(echo: Service, seed: int | None) -> None:
    drawn = {json.loads(txt2img(echo, body({"seed": seed})).json()["info"])["seed"] for _ in range(3)}
    assert len(drawn) == 3
    assert all(0 <= each < 2**32 for each in drawn)


@pytest.mark.parametrize(
    "given",
    [
        {"image": f"data:image/png;base64,{ENCODED}"},
        {"image": {"image": ENCODED, "mask": None}},
        {"image": None, "input_image": ENCODED},
        {"module": "Canny", "weight": "1.5", "guidance": 1, "pixel_perfect": True, "resize_mode": 1, "model": "None"},
    ],
    ids=["data URL", "masked", "legacy", "as others write it"],
)
def test_the_image_may_come_as_any_client_sends_it(echo: Service, given: dict[str, Any]) -> None:
    answer = txt2img(echo, body(**given)).json()
    assert np.array_equal(pixels_of(base64.b64decode(answer["images"][0])), NOISE)


def test_extensions_and_units_that_are_off_do_no_harm(echo: Service) -> None:
    request = body({"override_settings": {"samples_save": False, "sd_model_checkpoint": "echo [0123abcd]"}})
    units = request["alwayson_scripts"].pop("controlnet")["args"]
    request["alwayson_scripts"] = {"ADetailer": {"args": [False]}, "animatediff": {"args": []}}
    request["alwayson_scripts"]["ControlNet"] = {"args": [None, {"enabled": False, "module": "depth"}, *units]}
    assert txt2img(echo, request).status_code == 200


def test_images_that_nobody_wants_are_not_sent(echo: Service) -> None:
    answer = txt2img(echo, body({"send_images": False, "batch_size": 2})).json()
    assert answer["images"] == []
    assert len(json.loads(answer["info"])["all_seeds"]) == 2


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"alwayson_scripts": {}}, "0 ControlNet units are enabled. Send one, in alwayson_scripts.controlnet.args"),
        ({"alwayson_scripts": None}, "0 ControlNet units are enabled. Send one, in alwayson_scripts.controlnet.args"),
        ({"steps": 51}, "steps is 51; it must be from 1 to 50."),
        ({"cfg_scale": 50.5}, "cfg_scale is 50.5; it must be from 0 to 50."),
        ({"batch_size": 3, "n_iter": 3}, "batch_size times n_iter is 9; it must be from 1 to 8."),
        ({"batch_size": 0}, "batch_size is 0; it must be a whole number from 1 to 1000."),
        ({"seed": 2**64}, "seed is"),
        ({"prompt": "x" * 10_001}, "prompt has 10001 characters"),
        ({"enable_hr": True}, "enable_hr is true, but images are generated at one size only"),
        ({"restore_faces": True}, "restore_faces is true"),
        ({"tiling": True}, "tiling is true"),
        ({"styles": ["oil"]}, "styles is ['oil'], but this service has no styles"),
        ({"script_name": "x/y/z plot"}, "script_name is"),
        ({"refiner_checkpoint": "sdxl"}, "refiner_checkpoint is"),
        ({"subseed_strength": 0.2}, "subseed_strength is 0.2"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w is 512"),
        ({"override_settings": {"sd_model_checkpoint": "sdxl"}}, "sd_model_checkpoint is 'echo' here"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}}, "CLIP_stop_at_last_layers is 1 here"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "eta_noise_seed_delta is 31337, but"),
    ],
)
def test_unsupported_options_are_refused_with_the_reason(echo: Service, fields: dict[str, Any], told: str) -> None:
    assert told in refusal(txt2img(echo, body(fields)))


@pytest.mark.parametrize(
    ("of_unit", "told"),
    [
        ({"image": None}, "image is missing"),
        ({"image": ""}, "image is missing"),
        ({"image": "no base64!"}, "image is not base64: its character 10"),
        ({"image": base64.b64encode(b"no image").decode()}, "must be a PNG, JPEG or WebP file"),
        ({"module": "openpose"}, "module is 'openpose', which this service does not have. Send 'canny' (edges"),
        ({"module": "invert (from white bg & black line)"}, "Invert the image yourself and send it with 'none'."),
        ({"model": "control_v11p_sd15_openpose [cab727d4]"}, "follows edges: name one of 'canny'"),
        ({"weight": 2.5}, "weight is 2.5; it must be from 0 to 2."),
        ({"threshold_a": 2001}, "threshold_a is 2001; it must be from 1 to 2000."),
        ({"threshold_b": 0}, "threshold_b is 0; it must be from 1 to 2000."),
        ({"guidance_start": 0.1}, "guidance_start is 0.1"),
        ({"guidance_end": 0.9}, "guidance_end is 0.9"),
        ({"guidance": 0.9}, "guidance_end is 0.9"),
        ({"control_mode": 1}, "control_mode is 1; it must be 0 or 'Balanced'."),
        ({"control_mode": "ControlNet is more important"}, "control_mode is 'ControlNet"),
        ({"guessmode": True}, "guessmode is given"),
        ({"processor_res": 1024}, "processor_res is 1024, but edges are found at the image's own size"),
        ({"resize_mode": "Stretch"}, "resize_mode is 'Stretch', which is not a resize mode of ControlNet"),
        ({"input_mode": "batch"}, "input_mode is 'batch'; it must be 'simple'"),
        ({"loopback": True}, "loopback is given, but a request has one image"),
        ({"batch_images": "/home"}, "batch_images is given"),
        ({"use_preview_as_input": True}, "use_preview_as_input is given"),
        ({"ipadapter_input": ["x"]}, "ipadapter_input is given"),
        ({"advanced_weighting": [1.0, 0.5]}, "advanced_weighting is given"),
    ],
)
def test_unsupported_fields_of_a_unit_are_refused_with_the_reason(
    echo: Service, of_unit: dict[str, Any], told: str
) -> None:
    assert told in refusal(txt2img(echo, body(**of_unit)))


def test_two_images_are_one_too_many(echo: Service) -> None:
    request = body()
    request["alwayson_scripts"]["controlnet"]["args"] *= 2
    assert "2 ControlNet units are enabled. Send one" in refusal(txt2img(echo, request))


def test_a_field_by_another_services_name_is_noted(echo: Service) -> None:
    others: dict[str, Any] = {"random_seed": 5, "guidance_scale": 3, "num_inference_steps": 9, "canny_low": None}
    others |= {"init_images": [ENCODED]}
    answer = txt2img(echo, body(others | {"steps": 1, "denoising_strength": 0.7}))
    assert json.loads(answer.json()["info"])["notes"] == [
        "guidance_scale was ignored; its name here is cfg_scale.",
        "init_images was ignored; its name here is image, in a unit of alwayson_scripts.controlnet.args.",
        "num_inference_steps was ignored; its name here is steps.",
        "random_seed was ignored; its name here is seed.",
    ]
    assert not others.keys() & answer.json()["parameters"].keys()


def test_a_body_that_is_not_json_is_told_so(echo: Service) -> None:
    response = echo.client.post("/sdapi/v1/txt2img", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]) == (400, "The body is not JSON")
    assert (
        echo.client.post("/sdapi/v1/txt2img", content=b"x", headers={"content-type": "text/plain"}).status_code == 415
    )


def test_the_client_raises_what_it_is_told(api: Any) -> None:
    with pytest.raises(RuntimeError, match="Send one, in alwayson_scripts"):
        api.txt2img(prompt="a circle", alwayson_scripts={})


def test_img2img_is_refused_in_words(echo: Service) -> None:
    assert "send the image to /sdapi/v1/txt2img" in refusal(echo.client.post("/sdapi/v1/img2img", json={}))


# ----------------------------------------------------------------------------------------------------- what there is


def test_the_client_finds_its_way(api: Any) -> None:
    assert api.util_get_model_names() == ["echo"]
    assert api.util_get_current_model() == "echo"
    assert api.util_get_sampler_names() == ["UniPC"]
    assert api.util_get_scheduler_names() == ["automatic"]
    assert (api.get_upscalers(), api.get_loras(), api.get_sd_vae(), api.get_prompt_styles()) == ([], [], [], [])
    assert "controlnet" in api.get_scripts()["txt2img"]
    assert api.controlnet_version() == 2
    assert api.controlnet_model_list() == ["echo-canny"]
    assert api.controlnet_module_list() == ["none", "canny"]
    result = api.txt2img(
        prompt="a circle",
        controlnet_units=[
            webuiapi.ControlNetUnit(image=Image.fromarray(NOISE), module="canny", model=api.controlnet_model_list()[0])
        ],
    )
    assert len(result.images) == 1


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("script-info", [{"name": "controlnet", "is_alwayson": True, "is_img2img": False, "args": []}]),
        ("embeddings", {"loaded": {}, "skipped": {}}),
        ("memory", {"ram": {"error": "unavailable"}, "cuda": {"error": "unavailable"}}),
        ("cmd-flags", {}),
        ("hypernetworks", []),
        ("face-restorers", []),
        ("latent-upscale-modes", []),
    ],
)
def test_the_first_requests_of_other_clients_are_answered(echo: Service, name: str, there: Any) -> None:
    assert echo.client.get(f"/sdapi/v1/{name}").json() == there


def test_the_thresholds_of_canny_are_told_with_their_ranges(echo: Service) -> None:
    answer = echo.client.get("/controlnet/module_list").json()
    assert answer["module_detail"]["canny"]["sliders"][1:] == [
        {"name": "Canny Low Threshold", "value": 100, "min": 1, "max": 2000},
        {"name": "Canny High Threshold", "value": 200, "min": 1, "max": 2000},
    ]


def test_settings_may_be_set_to_what_they_are_and_to_nothing_else(api: Any) -> None:
    options = api.get_options()
    assert options["sd_model_checkpoint"] == "echo"
    assert api.set_options(options) is None
    assert api.set_options({"sd_model_checkpoint": "echo.safetensors", "live_preview_refresh_period": 500}) is None
    api.util_set_model("echo")
    refused = api.set_options({"sd_model_checkpoint": "sdxl"})
    assert "a request cannot change it to 'sdxl'." in refused["detail"]
    assert "this service has no such setting" in api.set_options({"hypertile_enable_unet": True})["detail"]


def test_the_model_paints_what_the_prompt_says(demo: Service) -> None:
    scene = flat_scenes(1, seed=5)[0]
    with client(demo) as api:
        given = [unit(scene.image, threshold_a=-1, threshold_b=-1)]
        result = api.txt2img(prompt=scene.caption, seed=9, cfg_scale=3.0, controlnet_units=given)
    file = io.BytesIO()
    result.image.save(file, "PNG")
    named = colours(scene, pixels_of(file.getvalue()))
    assert sum(wanted == found for wanted, found in named) >= len(named) - 1 > 0
    assert result.info["sd_model_name"] == "demo"
