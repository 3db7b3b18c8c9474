"""Model folders with keys and files that would make a loader run code, or read or fetch something else."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.workers.engine import demo
from workers.engine.config import EngineConfig, Weights
from workers.engine.model import read
from workers.engine.model_checks import UnsafeModelError, check_folders
from workers.engine.runtimes.sessions import Session
from workers.engine.weights import COMPONENTS

FLOAT = onnx.TensorProto.FLOAT
QUANTISED = {"quant_method": "bitsandbytes", "load_in_4bit": True}
CONFIGS = ("unet/config.json", "controlnet/config.json", "vae/config.json", "text_encoder/config.json")
WORDS = ("tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the demo model, and no network."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a loader calls {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return Path(shutil.copytree(demo.FOLDER, tmp_path / "model"))


def plant(path: Path, **keys: Any) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, **keys}))


def configured(folder: Path) -> EngineConfig:
    return replace(demo.CONFIG, model=Weights(path=str(folder)))


@pytest.mark.parametrize("file", CONFIGS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_implementation", "somebody/kernel:run"),
        ("_attn_implementation", "somebody/kernel"),
        ("auto_map", {"AutoModel": "somebody/code--modeling.Model"}),
        ("quantization_config", QUANTISED),
        ("use_kernels", True),
        ("transformers_weights", "../other.safetensors"),
        ("fusion_config", {"norm": True}),
    ],
)
def test_keys_of_a_network_that_name_code_or_files_are_refused(folder: Path, file: str, key: str, value: Any) -> None:
    plant(folder / file, **{key: value})
    with pytest.raises(UnsafeModelError, match=f"{file} sets {key}, which is refused, as .*: remove that key"):
        read(configured(folder), torch.float32)


@pytest.mark.parametrize("file", WORDS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoTokenizer": ["somebody/code--tokens.Tokens", None]}),
        ("trust_remote_code", True),
        ("init_inputs", ["/etc/passwd"]),
        ("fast_tokenizer_files", ["../../secret/tokenizer.4.0.0.json"]),
        ("vocab_file", "/etc/passwd"),
        ("tokenizer_file", "/etc/passwd"),
    ],
)
def test_keys_of_a_tokenizer_that_name_code_or_files_are_refused(folder: Path, file: str, key: str, value: Any) -> None:
    plant(folder / file, **{key: value})
    with pytest.raises(UnsafeModelError, match=f"{file} sets {key}"):
        read(configured(folder), torch.float32)


def test_nested_keys_are_refused_too(folder: Path) -> None:
    plant(folder / "text_encoder/config.json", text_config={"inner": [{"attn_implementation": "somebody/kernel"}]})
    with pytest.raises(UnsafeModelError, match="sets attn_implementation"):
        read(configured(folder), torch.float32)


@pytest.mark.parametrize("part", COMPONENTS)
@pytest.mark.parametrize("name", ["adapter_config.json", "diffusion_pytorch_model.safetensors.index.json"])
def test_files_that_name_other_weights_are_refused(folder: Path, part: str, name: str) -> None:
    content = {"base_model_name_or_path": "somebody/model", "weight_map": {"conv_in.weight": "../../other.safetensors"}}
    (folder / part / name).write_text(json.dumps(content))
    with pytest.raises(UnsafeModelError, match=f"{part}/{name} may name .*: remove the file"):
        read(configured(folder), torch.float32)


@pytest.mark.parametrize("content", ["[]", "{", "\0", "[" * 100_000])
def test_files_without_a_json_object_are_refused(folder: Path, content: str) -> None:
    (folder / "text_encoder/config.json").write_text(content)
    with pytest.raises(UnsafeModelError, match=r"text_encoder/config\.json .*: download the model again"):
        read(configured(folder), torch.float32)


def test_only_the_architecture_of_the_text_encoder_is_taken(folder: Path) -> None:
    plant(folder / "text_encoder/config.json", anything="at all", _attn_implementation=None, output_attentions=True)
    parts = read(configured(folder), torch.float32)
    config = parts.text_encoder.config
    assert config._attn_implementation == "sdpa"
    assert not config.output_attentions
    assert not hasattr(config, "anything")
    expected = demo.parts().text_encoder
    numbers = torch.tensor([[config.bos_token_id, 5, 6] + [config.eos_token_id] * 74])
    with torch.no_grad():
        assert torch.equal(parts.text_encoder.float()(numbers)[0], expected(numbers)[0])


def test_the_folders_that_are_served_pass(folder: Path) -> None:
    plant(folder / "tokenizer/tokenizer_config.json", tokenizer_file=None, special_tokens_map_file="./x.json")
    check_folders(*(path for path in folder.iterdir() if path.is_dir()))
    assert read(configured(folder), torch.float32).tokenizer("a").ids


@pytest.mark.parametrize("location", ["../secret.bin", "{}/secret.bin", "link.bin"])
def test_an_onnx_file_reads_no_weights_outside_its_folder(tmp_path: Path, location: str) -> None:
    """ONNX Runtime itself refuses to; this holds it to that."""
    inner = tmp_path / "inner"
    inner.mkdir()
    np.arange(4, dtype=np.float32).tofile(tmp_path / "secret.bin")
    (inner / "link.bin").symlink_to(tmp_path / "secret.bin")
    (inner / "good.bin").write_bytes((tmp_path / "secret.bin").read_bytes())
    assert add_file(inner, "good.bin")(torch.zeros(4), torch.ones(4)).tolist() == [1, 2, 3, 4]
    with pytest.raises(Exception, match="External data path"):
        add_file(inner, location.format(tmp_path))


def add_file(folder: Path, location: str) -> Session:
    """An ONNX file that adds weights that lie elsewhere."""
    weights = onnx.TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    ends = [onnx.helper.make_tensor_value_info(name, FLOAT, [4]) for name in ("x", "y")]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "graph", ends[:1], ends[1:], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return Session(folder / "model.onnx", torch.device("cpu"))
