"""Valid and invalid configurations, and the messages about invalid ones."""

from dataclasses import fields
from pathlib import Path

import pytest

from app import application
from app.http.access import read_keys
from app.settings import ServerConfig, Settings, SettingsError, load
from app.startup import StartError, check_runtime, runtime_in_words
from workers.devices import DeviceChoice, DeviceSpec
from workers.engine.config import Canny, Output, Sampler, Weights

ECHO = "engine: {kind: echo}"
CONFIGS = Path(__file__).parents[2] / "configs"


def settings(folder: Path, text: str, **environ: str) -> Settings:
    path = folder / "my.yaml"
    path.write_text(text)
    return load(path, environ)


def refusal(folder: Path, text: str, **environ: str) -> list[str]:
    """The lines of the message, without the folder."""
    with pytest.raises(SettingsError) as caught:
        settings(folder, text, **environ)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_configuration_that_ships_loads(path: Path) -> None:
    assert load(path, {}).server.port == 8000


def test_the_demo_finds_its_model_beside_it() -> None:
    engine = load(CONFIGS / "demo.yaml", {}).engine

    assert engine.model == Weights(path=str(CONFIGS / "demo"))
    assert engine.controlnet == Weights(path=str(CONFIGS / "demo" / "controlnet"))
    assert (Path(engine.model.path) / "model_index.json").exists()


def test_stable_diffusion_is_pinned_and_prompted_as_in_the_article() -> None:
    engine = load(CONFIGS / "sd15-canny.yaml", {}).engine

    assert engine.model is not None
    assert engine.model.revision == "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
    assert engine.guidance_scale == 7.5
    assert engine.prompt.suffix == ", best quality, extremely detailed"
    assert engine.prompt.negative == "monochrome, lowres, bad anatomy, worst quality, low quality"


def test_the_few_step_configuration_is_the_same_model_with_a_lora() -> None:
    lcm, usual = (load(CONFIGS / f"sd15-canny{kind}.yaml", {}).engine for kind in ("-lcm", ""))
    assert (lcm.model, lcm.controlnet, lcm.size) == (usual.model, usual.controlnet, usual.size)
    assert [lora.path for lora in lcm.loras] == ["latent-consistency/lcm-lora-sdv1-5"]
    assert (lcm.sampler.name, lcm.sampler.steps, lcm.guidance_scale) == ("LCMScheduler", 4, 1.0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("loras: [{path: ./x, scale: 9}]", "engine.loras.0.scale is 9, but must be a number from -4 up to 4"),
        ("loras: [{path: ./x}, {path: ./y, fill: z}]", "engine.loras.1.fill is not a setting; did you mean file?"),
        (
            "loras: [{path: ./x, file: a.bin}]",
            "engine.loras.0.file is 'a.bin', but must be text that ends with .safetensors",
        ),
        ("loras: [{scale: 1}]", "engine.loras.0.path is missing"),
        ("loras: [{path: some/lora}]", "engine.loras.0.revision is missing, but must be the repository's commit"),
        ("loras: 3", "engine.loras is 3, but must be a list of: keys (path, revision, file, scale)"),
        ("speed: {sizes: [[512, 10]]}", "engine.speed.sizes.0 is [512, 10], but must be [a whole number from 64"),
        ("speed: {sizes: [[512, 520]]}", "engine.speed.sizes.0 is [512, 520], but both must be multiples of"),
        ("speed: {sizes: [[512, 512], [768, 768]]}", "engine.speed.sizes.1 is [768, 768], but no image gets that size"),
        ("speed: {sizes: [[512, 1536]]}", "engine.speed.sizes.0 is [512, 1536], but no image gets that size"),
        ("speed: {sizes: [[64, 4096]]}", "engine.speed.sizes.0 is [64, 4096], but no image gets that size"),
        ("speed: {compile: maybe}", "engine.speed.compile is 'maybe', but must be true or false or auto"),
    ],
)
def test_a_problem_in_a_list_is_reported_with_its_position(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError) as refused:
        settings(tmp_path, f"engine:\n  model: {{path: ./m}}\n  controlnet: {{path: ./c}}\n  {text}\n")
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("runtime: openvino, speed: {compile: false}", "engine.speed.compile is false, but engine.runtime is openvino"),
        ("runtime: onnxruntime, speed: {compile: true}", "speed.compile is true, but engine.runtime is onnxruntime"),
        ("runtime: onnxruntime, speed: {attention: flash}", "attention is 'flash', but engine.runtime is onnxruntime"),
        ("runtime: openvino, speed: {attention: sdpa}", "attention is 'sdpa', but engine.runtime is openvino"),
        ("onnx_provider: tensorrt", "onnx_provider is tensorrt, but engine.runtime is auto: it needs onnxruntime"),
    ],
)
def test_what_the_runtime_would_ignore_is_refused(tmp_path: Path, text: str, told: str) -> None:
    assert told in "\n".join(refusal(tmp_path, f"engine: {{kind: echo, {text}}}"))


@pytest.mark.parametrize(
    "text",
    [
        "runtime: openvino, speed: {compile: true}",
        "runtime: onnxruntime, onnx_provider: tensorrt, speed: {compile: false}",
        "speed: {compile: false, sizes: [[512, 512], [1024, 512], [1024, 448]]}",
    ],
)
def test_what_the_runtime_uses_is_not(tmp_path: Path, text: str) -> None:
    assert settings(tmp_path, f"engine: {{kind: echo, {text}}}").engine.kind == "echo"


def test_a_negative_prompt_without_guidance_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    placement = DeviceChoice((DeviceSpec("cpu0", "cpu", None),), "No GPU")
    text = "engine: {model: {path: ./m}, controlnet: {path: ./c}, prompt: {negative: fog}, guidance_scale: "
    for scale in ("1}", "2}"):
        application._announce(settings(tmp_path, text + scale), placement)
    assert caplog.text.count("engine.prompt.negative has no effect, as engine.guidance_scale is 1 or less") == 1


def test_float8_without_a_gpu_is_refused_and_its_emulation_is_named(tmp_path: Path) -> None:
    placement = DeviceChoice((DeviceSpec("cpu0", "cpu", None),), "No GPU")
    text = "engine: {model: {path: ./m}, controlnet: {path: ./c}, quantisation: "
    with pytest.raises(StartError, match="quantisation is fp8, which needs a GPU: make it none, or fp8-emulated"):
        check_runtime(settings(tmp_path, text + "fp8}"), placement)
    emulated = settings(tmp_path, text + "fp8-emulated, dtype: float32}")
    check_runtime(emulated, placement)
    words = runtime_in_words(emulated.engine, cuda=False)
    assert words.endswith("torch in float32, linear layers in fp8-emulated")


def test_the_folder_of_a_lora_is_meant_from_the_file(tmp_path: Path) -> None:
    text = "engine:\n  model: {path: ./m}\n  controlnet: {path: ./c}\n  loras: [{path: ./l, scale: 0.5}]\n"
    (lora,) = settings(tmp_path, text).engine.loras
    assert (lora.path, lora.scale) == (str(tmp_path / "l"), 0.5)


def test_a_missing_key_has_its_default(tmp_path: Path) -> None:
    found = settings(tmp_path, "engine: {kind: echo}")

    assert found.server.host == "127.0.0.1"
    assert found.server.deadline == "auto"
    assert found.workers.cpu_workers == 1
    assert found.engine.output == Output(format="jpeg", quality=95)


def test_whole_numbers_and_exponents_are_numbers(tmp_path: Path) -> None:
    found = settings(tmp_path, "engine: {kind: echo, guidance_scale: 3, echo: {step_seconds: 1e-3}}")

    assert found.engine.guidance_scale == 3.0
    assert found.engine.echo.step_seconds == 0.001


# -------------------------------------------------------------------------------------------------------- environment


def test_a_variable_overrides_the_file(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        "engine: {kind: echo, sampler: {name: DDIMScheduler, steps: 50}}",
        CONTOUR_ENGINE__SAMPLER__STEPS="10",
        CONTOUR_SERVER__HOST="0.0.0.0",
        CONTOUR_SERVER__DEADLINE="2.5",
    )

    assert found.engine.sampler == Sampler(name="DDIMScheduler", steps=10)
    assert (found.server.host, found.server.deadline) == ("0.0.0.0", 2.5)


def test_a_variable_holds_a_whole_section_and_another_a_key_of_it(tmp_path: Path) -> None:
    found = settings(
        tmp_path,
        "engine: {kind: echo, canny: {high: 900}}",
        CONTOUR_ENGINE__CANNY__LOW="50",
        CONTOUR_ENGINE__CANNY="{low: 10, high: 60}",
    )

    assert found.engine.canny == Canny(low=50, high=60)


def test_a_variable_sets_an_option_of_the_sampler(tmp_path: Path) -> None:
    found = settings(tmp_path, "engine: {kind: echo}", CONTOUR_ENGINE__SAMPLER__OPTIONS__USE_KARRAS_SIGMAS="true")

    assert found.engine.sampler.options == {"use_karras_sigmas": True}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("ENGINE__SAMPLER__STEPS", "0", ": engine.sampler.steps is 0, but must be a whole number from 1 up to 1000"),
        (
            "SERVER__ALLOWED_HOSTS",
            "[a, b",
            ", line 1, column 6: is not YAML: a bracket is not closed, or a comma is missing",
        ),
        ("SERVER__ALLOWED_HOSTS__0", "b", ": server.allowed_hosts is a list: set the whole list"),
        ("SERVER__HOST__NAME", "there", ": server.host is a single value and has no keys"),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, told: str) -> None:
    text = f"{ECHO}\nserver: {{host: here, allowed_hosts: [a]}}"
    assert refusal(tmp_path, text, **{f"CONTOUR_{name}": value}) == [f"environment variable CONTOUR_{name}{told}"]


def test_an_unknown_variable_stops_the_start(tmp_path: Path) -> None:
    assert refusal(tmp_path, "engine: {kind: echo}", CONTOUR_SERVER__PROT="1", CONTOUR_DEBUG="1") == [
        "environment variable CONTOUR_DEBUG: debug is not a setting. Allowed: server, scheduler, workers, engine",
        "environment variable CONTOUR_SERVER__PROT: server.prot is not a setting; did you mean port? Allowed: "
        + ", ".join(field.name for field in fields(ServerConfig)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "dreamshaper #8",
        ", best quality",
        "  two spaces",
        "::",
        ":",
        "null",
        "true",
        "007",
        "1e3",
        "a: b",
        "{x",
        "*",
        "",
    ],
)
def test_a_variable_for_text_is_that_text(tmp_path: Path, text: str) -> None:
    found = settings(
        tmp_path,
        "server: {model_name: old}\nengine: {kind: echo, prompt: {suffix: old}}",
        CONTOUR_ENGINE__PROMPT__SUFFIX=text,
        CONTOUR_SERVER__MODEL_NAME=text,
    )
    assert found.engine.prompt.suffix == text
    assert found.server.model_name == (text or "echo")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("server.host", "::", "::"),
        ("server.port", " 8080 ", 8080),
        ("server.port", "007", 7),
        ("server.deadline", "auto", "auto"),
        ("server.deadline", "1e1", 10.0),
        ("server.max_pixels", "5000", 5000),
        ("server.log_requests", "no", False),
        ("server.log_requests", "0", False),
        ("server.shared_progress", "On", True),
        ("server.allowed_hosts", "[a.example, 'b.example']", ["a.example", "b.example"]),
        ("server.allowed_hosts", '["a.example"]', ["a.example"]),
        ("server.allowed_hosts", "[]", []),
        ("engine.speed.compile", "true", True),
        ("engine.speed.compile", "auto", "auto"),
        ("engine.speed.sizes", "[[512, 768]]", [(512, 768)]),
        ("engine.size.multiple", "32", 32),
        ("engine.sampler.options", "{use_karras_sigmas: true}", {"use_karras_sigmas": True}),
        ("engine.canny", '{"low": 7, "high": 9}', Canny(low=7, high=9)),
        ("engine.model", "{path: ./m}", Weights(path="/m")),
        ("engine.model", "null", None),
    ],
)
def test_a_variable_is_read_as_its_key_is_typed(tmp_path: Path, key: str, text: str, value: object) -> None:
    found: object = settings(tmp_path, ECHO, **{f"CONTOUR_{key.replace('.', '__').upper()}": text})
    for part in key.split("."):
        found = getattr(found, part)
    assert found == (Weights(path=str(tmp_path / "m")) if value == Weights(path="/m") else value)


@pytest.mark.parametrize(
    ("key", "text", "told"),
    [
        ("server.port", "http", "is 'http', but must be a whole number from 0 up to 65535"),
        ("server.port", "80.5", "is 80.5, but must be a whole number from 0 up to 65535"),
        ("server.deadline", "nan", "is nan, but must be a number above 0 up to 86400 or auto"),
        ("server.deadline", "soon", "is 'soon', but must be a number above 0 up to 86400 or auto"),
        ("server.log_level", "loud", "is 'loud', but must be one of debug, error, info, warning"),
        ("server.log_requests", "maybe", "is 'maybe', but must be true or false"),
        ("server.allowed_hosts", "a.example", "is 'a.example', but must be a list of: text"),
        ("server.host", "[::]", "is '[::]', but must be an address such as 127.0.0.1, 0.0.0.0 or ::"),
        ("server.host", "0.0.0.0:80", "is '0.0.0.0:80', but must be an address such as 127.0.0.1"),
        ("engine.canny", "null", "is empty, but must have keys (low, high, auto); leave it out for the defaults"),
    ],
)
def test_a_variable_that_does_not_fit_its_key_is_told(tmp_path: Path, key: str, text: str, told: str) -> None:
    name = f"CONTOUR_{key.replace('.', '__').upper()}"
    [line] = refusal(tmp_path, ECHO, **{name: text})
    assert line.startswith(f"environment variable {name}: {key} {told}")


@pytest.mark.parametrize(
    "key",
    [
        "server.host",
        "server.port",
        "server.deadline",
        "server.log_level",
        "server.log_requests",
        "server.allowed_hosts",
    ],
)
def test_an_empty_variable_is_not_set(tmp_path: Path, key: str) -> None:
    text = "server: {host: h, port: 1, deadline: 2, log_level: error, log_requests: false, allowed_hosts: [a]}\n" + ECHO
    name = f"CONTOUR_{key.replace('.', '__').upper()}"
    assert settings(tmp_path, text, **{name: ""}) == settings(tmp_path, text)


def test_an_empty_variable_for_a_section_is_not_set(tmp_path: Path) -> None:
    found = settings(tmp_path, "engine: {kind: echo, canny: {low: 9}}", CONTOUR_ENGINE__CANNY="", CONTOUR_ENGINE="")
    assert found.engine.canny.low == 9


def test_a_flag_goes_before_a_variable_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(ECHO)
    environ = {"CONTOUR_SERVER__PORT": "1", "CONTOUR_SERVER__HOST": "h"}
    server = load(path, environ, {"server.host": "::", "server.port": "2"}).server
    assert (server.host, server.port) == ("::", 2)
    with pytest.raises(SettingsError, match=r"^--port: server\.port is 'x', but must be a whole number"):
        load(path, environ, {"server.port": "x"})


@pytest.mark.parametrize(
    ("name", "nearest"), [("CONTOUR_SEVER__PORT", "server"), ("CONTOUR_ENGINE__PROMPTS__SUFFIX", "prompt")]
)
def test_a_misspelt_variable_is_refused_with_the_nearest_key(tmp_path: Path, name: str, nearest: str) -> None:
    [line] = refusal(tmp_path, ECHO, **{name: "1"})
    assert line.startswith(f"environment variable {name}: ")
    assert f"is not a setting; did you mean {nearest}?" in line


def test_the_variables_of_a_kubernetes_service_named_contour_are_not_ours(tmp_path: Path) -> None:
    settings(
        tmp_path,
        "engine: {kind: echo}",
        CONTOUR_SERVICE_HOST="10.0.0.1",
        CONTOUR_SERVICE_PORT="8000",
        CONTOUR_SERVICE_PORT_HTTP="8000",
        CONTOUR_PORT="tcp://10.0.0.1:8000",
        CONTOUR_PORT_8000_TCP="tcp://10.0.0.1:8000",
        CONTOUR_PORT_8000_TCP_ADDR="10.0.0.1",
    )


# ----------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("engine: {kind: exho}", "engine.kind is 'exho', but must be one of diffusion, echo"),
        ("server: {port: http}", "server.port is 'http', but must be a whole number from 0 up to 65535"),
        ("server: {port: 80.5}", "server.port is 80.5, but must be a whole number from 0 up to 65535"),
        ("server: {port: true}", "server.port is true, but must be a whole number from 0 up to 65535"),
        ("server: {host: 1}", "server.host is 1, but must be text that is not empty; put it in quotes"),
        (
            "server: {model_name: 1.5}",
            "server.model_name is 1.5, but must be text of at most 100 characters; put it in quotes",
        ),
        ("server: {host: }", "server.host is empty, but must be text that is not empty"),
        ("server: {deadline: 0}", "server.deadline is 0, but must be a number above 0 up to 86400 or auto"),
        ("server: {deadline: .nan}", "server.deadline is nan, but must be a number above 0 up to 86400 or auto"),
        ("server: {deadline: soon}", "server.deadline is 'soon', but must be a number above 0 up to 86400 or auto"),
        ("engine: {echo: {reencode: 1}}", "engine.echo.reencode is 1, but must be true or false"),
        ("engine: {size: {multiple: 12}}", "engine.size.multiple is 12, but must be one of 8, 16, 32, 64"),
        ("engine: {sampler: {options: x}}", "engine.sampler.options is 'x', but must be a mapping of names to values"),
        ("engine: {model: {revision: x}}", "engine.model.path is missing: it must be text that is not empty"),
        (
            "engine: {output: }",
            "engine.output is empty, but must have keys (format, quality); leave it out for the defaults",
        ),
        ("engine: {canny: {lo: 1}}", "engine.canny.lo is not a setting; did you mean low? Allowed: low, high, auto"),
        ("engine: {model: ./demo}", "engine.model is './demo', but must have keys (path, revision, file)"),
        (
            "server: {allowed_hosts: a}",
            "server.allowed_hosts is 'a', but must be a list of: text; write a list in brackets: [A, B]",
        ),
        ("engine: {canny: {1: 1}}", "engine.canny.1 is not a setting. Allowed: low, high, auto"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(tmp_path: Path, text: str, told: str) -> None:
    assert refusal(tmp_path, text) == [f"my.yaml: {told}"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("port: 1", "server.port (as a variable, CONTOUR_SERVER__PORT)"),
        ("server.port: 1", "server.port (as a variable, CONTOUR_SERVER__PORT)"),
        ("engine: {suffix: x}", "engine.prompt.suffix (as a variable, CONTOUR_ENGINE__PROMPT__SUFFIX)"),
    ],
)
def test_a_key_in_the_wrong_section_is_told_with_its_own(tmp_path: Path, text: str, meant: str) -> None:
    [line] = refusal(tmp_path, text)
    assert f" is not a setting; did you mean {meant}? Allowed: " in line


@pytest.mark.parametrize(
    ("former", "now"),
    [
        ("silence_factor", "heartbeat_factor"),
        ("silence_floor", "heartbeat_floor"),
        ("restart_pause", "restart_backoff"),
        ("restart_pause_max", "restart_backoff_max"),
        ("out_after", "quarantine_after"),
        ("out_pause", "quarantine_pause"),
    ],
)
def test_the_former_name_of_a_key_is_refused_with_the_new_one(tmp_path: Path, former: str, now: str) -> None:
    says = f"scheduler.{former} is called {now} now (as a variable, CONTOUR_SCHEDULER__{now.upper()})"

    assert refusal(tmp_path, f"{ECHO}\nscheduler: {{{former}: 3}}") == [f"my.yaml: {says}"]
    [line] = refusal(tmp_path, ECHO, **{f"CONTOUR_SCHEDULER__{former.upper()}": "3"})
    assert line.endswith(says)


@pytest.mark.parametrize("name", ["API_KEY", "SERVER_API_KEY"])
def test_a_variable_without_its_section_is_told_with_its_name(tmp_path: Path, name: str) -> None:
    [line] = refusal(tmp_path, ECHO, **{f"CONTOUR_{name}": "0123456789abcdef"})
    assert "did you mean server.api_key (as a variable, CONTOUR_SERVER__API_KEY)?" in line
    assert "0123456789abcdef" not in line


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, "server: {port: -1, host: 3}\nengine: {slots: 0}")) == 3


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("engine:\n  slots: 1\n  slots: 2\n", ", line 3, column 3: is not YAML: the key slots appears twice"),
        ("server:\n\tport: 1", ", line 2, column 1: is not YAML: there is a tab; indent with spaces"),
        ("server: {host: @a}", ", line 1, column 16: is not YAML: text that begins with one of @ ` % needs quotes"),
        ("server: {host: 'a}", ", line 1, column 19: is not YAML: a quotation mark is not closed"),
        ("server: {host: ::}", ", line 1, column 16: is not YAML: text that begins with ':' needs quotes"),
        ("server: {}\n---\nengine: {}", ", line 2, column 1: is not YAML: there is a second document (---)"),
        ("server: host: a", ", line 1, column 13: is not YAML: there is a second ':' on a line"),
        ("server: &a {host: *a}", ": is nested without end"),
        ("server: &a [*a]", ": is nested without end"),
        ("a: " + "[" * 5000, ": is nested without end"),
        ("server: {port: !!int x}", ": is not YAML: a number in it cannot be read"),
        ("server: {host: !!binary x}", ", line 1, column 16: is not YAML: look at the indentation"),
        ("a: \0", ", line 1: is not YAML: it contains a control character"),
    ],
)
def test_invalid_yaml_is_reported_with_its_position_and_advice(tmp_path: Path, text: str, told: str) -> None:
    [line] = refusal(tmp_path, text)
    assert line.startswith(f"my.yaml{told}")


def test_text_that_looks_like_a_date_stays_text(tmp_path: Path) -> None:
    assert settings(tmp_path, ECHO + "\nserver: {model_name: 2024-13-45}").server.model_name == "2024-13-45"


@pytest.mark.parametrize("text", ["", "- a", "word"])
def test_a_file_without_keys_is_an_error(tmp_path: Path, text: str) -> None:
    [line] = refusal(tmp_path, text)

    assert line.startswith("my.yaml: must contain keys and values, but is ")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "nine.yaml").write_text(ECHO)
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read: No such file.*; did you mean nine\.yaml\?$"):
        load(tmp_path / "none.yaml", {})


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(b"a: \xff")
    with pytest.raises(SettingsError, match=r"my\.yaml: cannot be read: it is not UTF-8 text$"):
        load(tmp_path / "my.yaml", {})


# -------------------------------------------------------------------------------------------------- impossible values


@pytest.mark.parametrize(
    ("section", "text", "told"),
    [
        ("engine", "canny: {low: 300, high: 200}", "canny.low is 300, but must not be above canny.high (200)"),
        (
            "engine",
            "size: {short_side: 640, long_side: 512}",
            "size.short_side is 640, but must not be above size.long",
        ),
        ("engine", "size: {short_side: 500}", "size.short_side is 500, but must be a multiple of size.multiple (64)"),
        (
            "server",
            "max_image_bytes: 3000, max_body_bytes: 2000",
            "max_image_bytes is 3000, which is 4000 in base64: more than server.max_body_bytes (2000)",
        ),
        ("workers", "output_bytes: 1000000", "output_bytes is 1000000, but a result may take 16777216"),
        ("server", "deadline: 90, max_deadline: 60", "deadline is 90.0, but must not be above server.max_deadline"),
        ("scheduler", "restart_backoff: 90, restart_backoff_max: 9", "restart_backoff is 90"),
    ],
)
def test_values_that_contradict_each_other_are_told(tmp_path: Path, section: str, text: str, told: str) -> None:
    whole = f"engine: {{kind: echo, {text}}}" if section == "engine" else f"{ECHO}\n{section}: {{{text}}}"
    [line] = refusal(tmp_path, whole)
    assert line.startswith(f"my.yaml: {section}.{told}")


def test_diffusion_needs_weights(tmp_path: Path) -> None:
    first, second = refusal(tmp_path, "engine: {kind: diffusion}")

    assert first.startswith("my.yaml: engine.model is missing: kind diffusion needs a path, a folder")
    assert second.startswith("my.yaml: engine.controlnet is missing")


def test_a_repository_needs_a_name_and_a_commit(tmp_path: Path) -> None:
    text = "engine: {model: {path: owner/name, revision: main}, controlnet: {path: name}}"

    assert refusal(tmp_path, text) == [
        "my.yaml: engine.model.revision is main, but must be the repository's commit: 40 digits of 0-9 and a-f",
        "my.yaml: engine.controlnet.path is 'name', "
        "but must be a folder (./x, ../x or /x) or a repository on the hub (owner/name)",
    ]


def test_folders_are_meant_from_the_file(tmp_path: Path) -> None:
    engine = settings(tmp_path, "engine: {model: {path: ../weights}, controlnet: {path: /weights}}").engine

    assert engine.model == Weights(path=str(tmp_path.parent / "weights"))
    assert engine.controlnet == Weights(path="/weights")


def test_threads_share_the_cores(tmp_path: Path) -> None:
    workers = settings(tmp_path, "engine: {kind: echo}").workers

    assert workers.threads_per_worker(cores=8, workers=2) == 4
    assert workers.threads_per_worker(cores=2, workers=3) == 1


# --------------------------------------------------------------------------------------------------------------- keys

KEY = "of-16-characters"
MAKE_ONE = "`openssl rand -hex 16` makes one. Set no key to serve everybody"


def test_keys_come_from_the_configuration_and_from_a_file_seen_from_it(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"# old\n  {KEY}1 \n\n{KEY}2\n")
    server = settings(tmp_path, f"{ECHO}\nserver: {{api_key: {KEY}0, api_key_file: keys}}").server
    assert read_keys(server.api_key, server.api_key_file) == [f"{KEY}0", f"{KEY}1", f"{KEY}2"]
    assert KEY not in repr(server)


@pytest.mark.parametrize("key", ["1234567812345678", f"@{KEY}", f"a:{KEY}", f"[{KEY}]", "1e10000000000000"])
def test_a_key_in_a_variable_is_taken_as_it_is(tmp_path: Path, key: str) -> None:
    server = settings(tmp_path, ECHO, CONTOUR_SERVER__API_KEY=key).server
    assert read_keys(server.api_key, None) == [key]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file or directory"),
        (b"", "it has no keys; write one per line"),
        (b"# none yet\n \n", "it has no keys; write one per line"),
        (b"\xff\xfe", "it is not UTF-8 text"),
        (
            b"two words of a key\n",
            "a key has characters that cannot be sent in a header; use letters, digits and punctuation",
        ),
        (
            b"of15characters!\n",
            f"a key has 15 characters, but needs at least 16 so that nobody can guess it; {MAKE_ONE}",
        ),
    ],
)
def test_a_key_file_that_is_of_no_use_is_told_with_its_key_and_path(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    found = refusal(tmp_path, ECHO, CONTOUR_SERVER__API_KEY_FILE=str(tmp_path / "keys"))
    variable = "environment variable CONTOUR_SERVER__API_KEY_FILE"
    assert found == [f"{variable}: server.api_key_file is keys, which cannot be used: {told}"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_key_file_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "keys").write_text(f"{KEY}\n")
    (tmp_path / "keys").chmod(mode)
    [line] = refusal(tmp_path, f"{ECHO}\nserver: {{api_key_file: keys}}")
    assert line.endswith("other users can write to it and so add their own keys; run chmod go-w on it")


@pytest.mark.parametrize("key", ["", "short", "of15characters!"])
def test_a_key_that_is_empty_or_short_stops_the_start(tmp_path: Path, key: str) -> None:
    [line] = refusal(tmp_path, ECHO, CONTOUR_SERVER__API_KEY=key)
    assert line.startswith("environment variable CONTOUR_SERVER__API_KEY: server.api_key cannot be used: a key has ")
    assert line.endswith(MAKE_ONE)
    assert "short" not in line


@pytest.mark.parametrize("path", ["", " ", "~", "null"])
def test_a_variable_without_a_key_file_stops_the_start(tmp_path: Path, path: str) -> None:
    """It would else override the file of the configuration, and serve everybody."""
    (tmp_path / "keys").write_text(f"{KEY}\n")
    text = f"{ECHO}\nserver: {{api_key_file: keys}}"
    [line] = refusal(tmp_path, text, CONTOUR_SERVER__API_KEY_FILE=path)
    assert line.startswith("environment variable CONTOUR_SERVER__API_KEY_FILE: server.api_key_file ")


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("allowed_hosts", "https://a.example", "is 'https://a.example', but must be a host name without port"),
        ("allowed_hosts", "a.example:80", "is 'a.example:80', but must be a host name without port"),
        ("allowed_origins", "a.example", "is 'a.example', but must be an origin as browsers write it"),
        ("allowed_origins", "https://a.example/", "is 'https://a.example/', but must be an origin"),
        ("allowed_origins", "null", "is 'null', but must be an origin"),
        ("allowed_origins", "https://a.example:443", "is 'https://a.example:443', but must be an origin"),
        ("allowed_hosts", "a:80", "is 'a:80', but must be a host name without port"),
    ],
)
def test_an_invalid_host_or_origin_is_reported(tmp_path: Path, key: str, value: str, told: str) -> None:
    [line] = refusal(tmp_path, f"{ECHO}\nserver: {{{key}: ['{value}']}}")
    assert line.startswith(f"my.yaml: server.{key}.0 {told}")


@pytest.mark.parametrize("text", ["{api_key: 12345678}", "{api_key: [12345678]}", "{api_key: 1234 5678}"])
def test_a_wrong_key_is_not_shown(tmp_path: Path, text: str) -> None:
    [line] = refusal(tmp_path, f"{ECHO}\nserver: {text}")
    assert line.startswith("my.yaml: server.api_key ")
    assert "1234" not in line


def test_a_proxy_that_is_no_address_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path, f"{ECHO}\nserver: {{trusted_proxies: [10.0.0.0/8, 10.0.0.1/8]}}") == [
        "my.yaml: server.trusted_proxies.1 is '10.0.0.1/8', but must be an address or a network, such as 10.0.0.0/8"
    ]
