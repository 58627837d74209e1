"""Model files that do not belong together are refused: transformers would fill what is missing with random
numbers and go on."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from workers.loaded.load import load
from workers.models.model_files import ModelError, find_model


def configured(**keys: object) -> Callable[[Path], None]:
    """Other values in config.json, the weights as they were."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | keys))

    return change


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def with_a_weight_more(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.q_proj.bias"] = torch.zeros(32)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_a_folder_that_only_another_user_may_enter_is_refused(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    user = os.geteuid()
    try:
        if user == 0:  # who may enter everything
            os.seteuid(65534)
        with pytest.raises(ModelError, match="cannot be looked at as a directory: Permission denied"):
            find_model(str(closed / "model"))
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    "change", [configured(num_hidden_layers=1), with_a_weight_more], ids=["a layer less", "a bias more"]
)
def test_weights_of_the_files_that_the_model_leaves_out_are_refused(change, tiny_model_dir, tmp_path):
    """transformers drops them without a word, and goes on with another model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    change(folder)
    with pytest.raises(
        ModelError,
        match=r"its files hold \d+ weights that its config.json leaves out, such as model.layers.1",
    ):
        load(find_model(str(folder)), "float32", torch.device("cpu"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            configured(num_hidden_layers=3),
            "says 3 layers (num_hidden_layers), and the names of the weights beside it go up to layer 1",
        ),
        (
            configured(intermediate_size=128),
            "or have them in another shape, such as model.layers.0.mlp.down_proj.weight",
        ),
        (without_a_weight, "its files lack 1 of the weights"),
        (cut_off, "of the 139,160 that it holds"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b""),
            "its header would be 0 bytes long, and the file has 0",
        ),
    ],
    ids=["a layer more", "other shapes", "a weight less", "cut off", "empty"],
)
def test_weights_that_are_not_all_there_are_refused(change, said, tiny_model_dir, tmp_path, capfd):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    change(folder)
    with pytest.raises(
        ModelError, match=r"cannot be loaded|is not a whole safetensors file|says 3 layers"
    ) as caught:
        load(find_model(str(folder)), "float32", torch.device("cpu"))
    assert said in str(caught.value) and len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", ""), "the driver alone draws"
