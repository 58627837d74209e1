"""The harness is told only of lengths at which the model can be measured, and of no model that cannot."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("lm_eval")

from workers.harness.model import PrunedModel
from workers.harness.tasks import HarnessError
from workers.loaded.diagnosis import fixed_diagnosis
from workers.models.architecture import Limit
from workers.models.model_files import ModelError
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")


def test_a_limit_shortens_what_the_harness_may_ask_for(model, facts):
    limited = replace(facts, limits=(Limit(60, "some of its layers attend to the last 60 tokens only"),))
    assert PrunedModel(model, facts, PruneSettings(), CPU).max_length == facts.context
    assert PrunedModel(model, limited, PruneSettings(), CPU).max_length == 60
    assert PrunedModel(model, limited, PruneSettings(), CPU, max_length=60).max_length == 60
    with pytest.raises(
        HarnessError, match=r"max_length: 61 is longer than the 60 tokens up to which .* last 60 tokens only"
    ):
        PrunedModel(model, limited, PruneSettings(), CPU, max_length=61)


def test_a_model_that_cannot_be_measured_is_refused_before_it_is_loaded(tiny_model_dir, tmp_path):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "latents")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"kv_lora_rank": 8}))
    with pytest.raises(ModelError, match="compressed latents"):
        PrunedModel.create_from_arg_string(f"pretrained={folder},device=cpu")


def test_a_rule_for_skipped_layers_is_resolved_by_the_loaded_model(model, facts, pruned_model):
    made = pruned_model(PruneSettings("knorm", 0.5, 24, "auto:1"))
    assert made.settings.skipped == fixed_diagnosis(model, facts).worst(1)
    assert made.get_model_info()["kvsweep_skip_layers_rule"] == "auto:1"
    with pytest.raises(HarnessError, match="auto:1 is the most"):
        pruned_model(PruneSettings("knorm", 0.5, 24, "auto:2"))
