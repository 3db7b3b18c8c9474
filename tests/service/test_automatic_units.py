"""AUTOMATIC1111's API: ControlNet's units, their masks, edge maps, and `/controlnet/detect`."""

import base64
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from typing import Any

import httpx
import numpy as np
import pytest

from tests.fuzz.seeds import file_of as any_file
from tests.service.automatic import ENCODED, NOISE, body, txt2img
from tests.service.raw import connect, head
from tests.service.running import Pixels, Service, encoded, file_of, named, pixels_of, until
from tests.workers.contours import drawing, expected, size_of
from tests.workers.contours import pixels_of as grey_pixels_of
from workers.edge_process import at_resolution
from workers.engine.config import Canny, Sizing

MIB = 2**20
SIZING = Sizing(short_side=192, long_side=384)
CANNY = Canny(low=60, high=150)
DRAWING = any_file(drawing(200, 150), "PNG")
KEY = "k" * 32
DETECT = "/controlnet/detect"


def flat(value: int, spot: int | None = None, shape: tuple[int, int] = (96, 64)) -> Pixels:
    """An image of one value, but perhaps for one pixel."""
    pixels = np.full((*shape, 3), value, np.uint8)
    if spot is not None:
        pixels[40, 20] = spot
    return pixels


BLANK: dict[str, str] = {
    "black": encoded(file_of(flat(0))),
    "nearly black": encoded(file_of(flat(0, 5))),
    "white": encoded(file_of(flat(255))),
    "nearly white": encoded(file_of(flat(255, 250))),
    "a JPEG of black": encoded(any_file(drawing(90, 60).point(lambda _: 0), "JPEG")),
    "grey mode": encoded(any_file(drawing(90, 60, "L").point(lambda _: 255), "PNG")),
    "transparent": encoded(any_file(drawing(90, 60, "RGBA").point(lambda _: 0), "PNG")),
    "data URL": "data:image/png;base64," + encoded(file_of(flat(0))),
    "of another size": encoded(file_of(flat(0, shape=(300, 200)))),
    "empty": "",
}
MASKING = {
    "a spot on black": encoded(file_of(flat(0, 6))),
    "a spot on white": encoded(file_of(flat(255, 249))),
    "grey": encoded(file_of(flat(128))),
    "half": encoded(file_of(np.concatenate([flat(0), flat(255)]))),
    # One pixel of four million, which is not to be lost where an image is made smaller.
    "a spot on much black": encoded(file_of(flat(0, 255, (900, 1000)))),
}


def asked(name: str, mask: str | None) -> dict[str, Any]:
    """A request whose mask is where a client may have it."""
    match name:
        case "image.mask":
            return body(image={"image": ENCODED, "mask": mask})
        case "pair":
            return body(image=[ENCODED, mask])
        case _:
            given: dict[str, Any] = {name: mask}
            return body(**given)


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code == 422, answer.text[:300]
    assert answer.json().keys() == {"error", "detail", "errors", "body"}
    return str(answer.json()["detail"])


# --------------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("name", ["mask", "mask_image", "image.mask", "pair"])
def test_a_blank_mask_masks_nothing(echo: Service, name: str) -> None:
    for kind, mask in [*BLANK.items(), ("null", None)]:
        answer = txt2img(echo, asked(name, mask))
        assert answer.status_code == 200, (kind, answer.text[:300])
        assert np.array_equal(pixels_of(base64.b64decode(answer.json()["images"][0])), NOISE)


@pytest.mark.parametrize("kind", sorted(MASKING))
def test_any_other_mask_is_refused_by_its_name(echo: Service, kind: str) -> None:
    for name in ("mask", "mask_image", "image.mask", "effective_region_mask"):
        told, blamed = refusal(txt2img(echo, asked(name, MASKING[kind]))), name.removeprefix("image.")
        assert told.startswith(f"{blamed} covers part of the image, but this service uses the whole image")


def test_a_region_of_nothing_is_not_a_region_of_all(echo: Service) -> None:
    assert txt2img(echo, asked("effective_region_mask", BLANK["white"])).status_code == 200
    assert "effective_region_mask covers" in refusal(txt2img(echo, asked("effective_region_mask", BLANK["black"])))


def test_a_mask_that_is_no_image_is_refused_by_its_name(echo: Service) -> None:
    large = file_of(np.zeros((1001, 1000, 3), np.uint8))
    for mask in (encoded(b"no image at all"), "?", encoded(file_of(flat(0))[:60])):
        told = txt2img(echo, asked("mask", mask))
        assert (told.status_code, "mask" in told.json()["detail"] or "image" in told.json()["detail"]) == (422, True)
    assert txt2img(echo, asked("mask", encoded(large))).status_code == 413


def test_a_unit_that_is_off_is_not_read(echo: Service) -> None:
    request = body()
    args = request["alwayson_scripts"]["controlnet"]["args"]
    args += [{"enabled": False, "module": "depth", "mask": "?", "weight": "heavy", "image": 7}, {"enabled": "false"}]
    args += [None, False, True, "ControlNet", 3, {}, {"module": "none", "image": None}, {"model": "None"}]
    args += [{"enabled": True, "module": "None", "model": "None", "image": None, "weight": 1.0}, {"enabled": True}]
    args += [{"enabled": True, "module": "none", "image": {"image": None, "mask": None}}, {"image": [None, None]}]
    for name in ("controlnet", "ControlNet", "CONTROLNET", "sd_forge_controlnet", "ControlNet Integrated"):
        request["alwayson_scripts"] = {name: {"args": args}}
        assert txt2img(echo, request).status_code == 200


@pytest.mark.parametrize("image", [b'"\xff"', b'{"image": "\xff"}', b"1e999", b"[[[[[[]]]]]]"], ids=repr)
def test_a_units_image_must_be_text(echo: Service, image: bytes) -> None:
    content = b'{"alwayson_scripts": {"controlnet": {"args": [{"image": %b}]}}}' % image
    answer = echo.client.post("/sdapi/v1/txt2img", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}, answer.text


@pytest.mark.parametrize(
    "fields",
    [
        {"pixel_perfect": True, "processor_res": 1024},
        {"processor_res": 512, "resize_mode": "Crop and Resize", "control_mode": "Balanced", "hr_option": "Both"},
        {"processor_res": -1, "resize_mode": 2, "low_vram": True, "lowvram": False, "save_detected_map": True},
        {"processor_res": None, "resize_mode": "Outer Fit (Shrink to Fit)", "guidance_start": 0, "guidance_end": 1.0},
        {"input_mode": "simple", "batch_images": "", "loopback": False, "use_preview_as_input": False, "is_ui": True},
        {"advanced_weighting": None, "ipadapter_input": None, "animatediff_batch": False, "batch_modifiers": []},
        {"module": "CANNY ", "model": "control_v11p_sd15_canny [d14c016b]", "union_control_type": "Unknown"},
        {"image": [ENCODED]},
        {"control_mode": "balanced", "advanced_weighting": [1.0] * 13},
        {"control_mode": "ControlMode.BALANCED"},
        {"control_mode": "", "resize_mode": "", "input_mode": "", "model": ""},
    ],
    ids=", ".join,
)
def test_neutral_fields_of_a_unit_are_accepted(echo: Service, fields: dict[str, Any]) -> None:
    assert txt2img(echo, body(**fields)).status_code == 200


# ----------------------------------------------------------------------------------------------------------- edge maps


def test_module_none_takes_an_edge_map_as_it_is(demo: Service) -> None:
    edges = demo.client.post("/edges", content=DRAWING, headers={"Content-Type": "image/png"}).content
    same = {"seed": 7, "steps": 2, "override_settings": {"enable_pnginfo": False}}
    by_module = {}
    for module, image in (("canny", DRAWING), ("none", edges), ("None", edges), (None, edges)):
        answer = txt2img(demo, body(same, module=module, image=encoded(image), threshold_a=-1, threshold_b=-1))
        assert answer.status_code == 200, answer.text[:300]
        by_module[str(module)] = answer.json()["images"][0]
        control = json.loads(answer.json()["info"])["extra_generation_params"]["ControlNet 0"]
        assert control.startswith(f"Module: {(module or 'none').lower()}, Model: demo-canny, Weight: 1")
    assert by_module["none"] == by_module["None"] == by_module["canny"]
    doubled = txt2img(demo, body(same, module="canny", image=encoded(edges))).json()["images"][0]
    assert doubled != by_module["none"]


def test_thresholds_say_nothing_of_an_edge_map(echo: Service) -> None:
    assert txt2img(echo, body(module="none", threshold_a=64, threshold_b=9999, processor_res=777)).status_code == 200


# -------------------------------------------------------------------------------------------------------------- detect


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    sizing = {"ENGINE__SIZE__SHORT_SIDE": SIZING.short_side, "ENGINE__SIZE__LONG_SIDE": SIZING.long_side}
    canny = {"ENGINE__CANNY__LOW": CANNY.low, "ENGINE__CANNY__HIGH": CANNY.high}
    with Service("echo", **sizing, **canny, SERVER__MAX_PIXELS=1_000_000, WORKERS__CPU_WORKERS=1) as service:
        yield service.wait_until_ready()


def detect(service: Service, *images: bytes, **fields: Any) -> httpx.Response:
    given = {"module": "canny", "input_images": [encoded(image) for image in images], **fields}
    return service.client.post(DETECT, json={f"controlnet_{name}": value for name, value in given.items()})


def found(answer: httpx.Response) -> list[Pixels]:
    assert answer.status_code == 200, answer.text[:300]
    told = answer.json()
    assert (told.keys(), told["info"]) == ({"images", "info"}, "Success")
    return [grey_pixels_of(base64.b64decode(image)) for image in told["images"]]


@pytest.mark.parametrize("unset", [{}, {"processor_res": -1}, {"threshold_a": -1, "threshold_b": None}], ids=str)
def test_detect_finds_the_edges_that_the_model_would_see(service: Service, unset: dict[str, Any]) -> None:
    other = any_file(drawing(120, 210), "JPEG")
    edges = found(detect(service, DRAWING, other, **unset))
    for image, each in zip((DRAWING, other), edges, strict=True):
        assert np.array_equal(each, expected(image, size_of(image, SIZING), CANNY))


def test_detect_takes_thresholds_and_a_resolution(service: Service) -> None:
    for resolution in (64, 192, 512, 2048):
        (edges,) = found(detect(service, DRAWING, processor_res=resolution, threshold_a=20, threshold_b=300))
        size = size_of(DRAWING, at_resolution(SIZING, resolution))
        assert min(size) == resolution
        assert np.array_equal(edges, expected(DRAWING, size, Canny(low=20, high=300)))


def test_detect_answers_with_an_edge_map_as_it_is_taken(service: Service) -> None:
    pixels = np.zeros((192, 256, 3), np.uint8)
    pixels[50:60] = 255
    for module in ("none", "None", None):
        (grey,) = found(detect(service, file_of(pixels), module=module))
        assert np.array_equal(grey, pixels[:, :, 0])


def test_detect_takes_a_request_as_clients_send_it(service: Service) -> None:
    url = "data:image/png;base64," + encoded(DRAWING)
    given = {"controlnet_module": "Canny", "controlnet_images": [url], "controlnet_masks": [BLANK["black"], None]}
    answer = service.client.post(DETECT, json={**given, "low_vram": True})
    assert np.array_equal(found(answer)[0], expected(DRAWING, size_of(DRAWING, SIZING), CANNY))


def test_detect_refuses_in_words(service: Service) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"module": "openpose"}, "controlnet_module is 'openpose', which this service does not have."),
        ({"input_images": []}, "controlnet_input_images has 0 images; it must have from 1 to 8"),
        ({"input_images": None}, "controlnet_input_images has 0 images"),
        ({"input_images": ["AAAA"] * 9}, "controlnet_input_images has 9 images"),
        ({"input_images": ["?"]}, "controlnet_input_images"),
        ({"input_images": encoded(DRAWING)}, "it must be a list."),
        ({"input_images": [encoded(DRAWING[:100])]}, "image"),
        ({"processor_res": 63}, "controlnet_processor_res is 63"),
        ({"processor_res": 2049}, "controlnet_processor_res is 2049"),
        ({"processor_res": 100.5}, "controlnet_processor_res is 100.5"),
        ({"threshold_a": 0}, "controlnet_threshold_a is 0; it must be from 1 to 2000."),
        ({"threshold_b": 2001}, "controlnet_threshold_b is 2001; it must be from 1 to 2000."),
        ({"masks": [MASKING["half"]]}, "controlnet_masks covers part of the image"),
    ]
    for fields, told in refused:
        assert told in refusal(detect(service, DRAWING, **fields)), fields
    assert detect(service, file_of(np.zeros((1001, 1000, 3), np.uint8))).status_code == 413
    noise = file_of(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    large = detect(service, *[noise] * 8, module="none", processor_res=2048)
    assert (large.status_code, "Send fewer images at a time" in large.json()["detail"]) == (413, True)
    assert service.client.post(DETECT, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert service.client.post(DETECT, content=DRAWING, headers={"Content-Type": "image/png"}).status_code == 415
    assert service.client.get(DETECT).status_code == 405


def test_module_lists_name_what_detect_takes(service: Service) -> None:
    modules = service.client.get("/controlnet/module_list", params={"alias_names": "true"}).json()
    types = service.client.get("/controlnet/control_types").json()["control_types"]
    models = service.client.get("/controlnet/model_list", params={"update": "false"}).json()["model_list"]
    assert modules["module_list"] == ["none", "canny"] == list(modules["module_detail"])
    for kind in types.values():
        assert (kind["module_list"], kind["model_list"]) == (["none", "canny"], models)
        assert (kind["default_option"], kind["default_model"]) == ("canny", models[0])
    for module in modules["module_list"]:
        assert len(found(detect(service, DRAWING, module=module))) == 1
        image = encoded(DRAWING)
        assert txt2img(service, body(module=module, model=models[0], image=image)).status_code == 200


def test_detect_and_masks_wait_for_the_process_and_leave_with_their_client(service: Service) -> None:
    assert detect(service, DRAWING).status_code == 200
    process = next(pid for name, pid in named(service.descendants()).items() if name == "contour edges")
    os.kill(process, signal.SIGSTOP)
    try:
        content = json.dumps({"controlnet_module": "canny", "controlnet_input_images": [encoded(DRAWING)]}).encode()
        request = head("Content-Type: application/json", f"Content-Length: {len(content)}", path=DETECT) + content
        gone = partial(service.sample, "contour_edges_total", outcome="abandoned")
        before = gone()
        for number in range(1, 4):
            with closing(connect(service)) as connection:
                connection.sendall(request)
            until(partial(lambda so_many: gone() == so_many, before + number))
        with ThreadPoolExecutor() as pool:
            masked = pool.submit(txt2img, service, asked("mask", BLANK["black"]))
            assert service.generate().status_code == 200  # nobody else waits for the mask
            assert not masked.done()
            os.kill(process, signal.SIGCONT)
            assert masked.result().status_code == 200
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)
    assert len(found(detect(service, DRAWING))) == 1


def test_a_key_is_asked_for_and_edges_of_a_mask_cost_their_process_alone() -> None:
    with Service("echo", SERVER__API_KEY=KEY, WORKERS__CPU_WORKERS=1) as guarded:
        guarded.wait_until_ready()
        assert detect(guarded, DRAWING).status_code == 401
        guarded.client.headers["X-API-Key"] = KEY
        assert len(found(detect(guarded, DRAWING))) == 1
        foreign = guarded.client.post(DETECT, json={}, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        edges = next(pid for name, pid in named(guarded.descendants()).items() if name == "contour edges")
        os.kill(edges, signal.SIGKILL)
        assert txt2img(guarded, asked("mask", BLANK["white"])).status_code == 200
        assert [worker["restarts"] for worker in guarded.readiness()["workers"]] == [0]
