"""The tiny model of the tests as a model of lm-evaluation-harness, and a folder of tasks."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")


from tests.harness.local_tasks import write_tasks
from workers.harness.model import PrunedModel
from workers.loaded.load import load
from workers.models.model_files import find_model
from workers.policies.settings import PruneSettings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def facts(tiny_model_dir):
    return find_model(str(tiny_model_dir))


@pytest.fixture(scope="module")
def model(facts):
    return load(facts, "float32", CPU)


@pytest.fixture(scope="module")
def pruned_model(model, facts):
    """``pruned_model(settings, **options)``: the harness's model on the one that is loaded."""
    tokenizer = PrunedModel(model, facts, PruneSettings(), CPU).tokenizer
    return lambda settings, **options: PrunedModel(
        model, facts, settings, CPU, **{"tokenizer": tokenizer, "progress": False, **options}
    )
