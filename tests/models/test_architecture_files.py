"""What a config.json tells is decided at planning: refusals and limits, for every family of the installed
transformers."""

import json
import shutil
from typing import Any

import pytest
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.model_families import verdicts
from workers.models.architecture import Limit, read_architecture
from workers.models.families import SHAPE_KEYS
from workers.models.model_files import _facts
from workers.models.model_settings import text_settings
from workers.models.positions import Positions

VERDICTS = verdicts()
WITHOUT_DEFAULT = "gemma4_assistant"
"""Its default configuration is not valid."""


def default(kind: str) -> dict[str, Any]:
    return {"model_type": kind} if kind == WITHOUT_DEFAULT else CONFIG_MAPPING[kind]().to_dict()


def told(config: dict[str, Any]) -> tuple[list[int], str]:
    """Limits and the first reason of a refusal."""
    architecture = read_architecture(config)
    limits = [] if architecture.refusals else [limit.tokens for limit in architecture.limits]
    return limits, next(iter(architecture.refusals), "")


def matches(verdict: str, limits: list[int], reason: str) -> bool:
    if verdict.startswith("refused for "):
        return verdict.removeprefix("refused for ") in reason and bool(reason)
    return not reason and limits == ([] if verdict == "exact" else [int(verdict.removeprefix("up to "))])


def test_the_table_has_every_family_of_the_installed_transformers():
    assert sorted(VERDICTS) == sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_every_family_is_exact_limited_or_refused_for_its_reason(kind):
    assert matches(VERDICTS[kind], *told(default(kind)))


@pytest.mark.parametrize("kind", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_key_that_a_file_leaves_out_has_the_value_that_transformers_gives_it(kind):
    """Refused families may be refused for another reason first: a list of layers cannot be guessed."""
    limits, reason = told({"model_type": kind})
    assert matches(VERDICTS[kind], limits, reason) or (reason and VERDICTS[kind].startswith("refused"))


@pytest.mark.parametrize("kind", ["emu3", "gemma3", "llama4"])
@pytest.mark.parametrize("says", [{}, {"num_hidden_layers": 34, "hidden_size": 2560}])
def test_a_language_model_within_another_has_the_shape_that_transformers_gives_it(kind, says):
    """Files of models that also see leave out what is as it is by default: google/gemma-3-4b-it has no
    num_attention_heads."""
    named = CONFIG_MAPPING[kind](text_config=says).get_text_config()
    for model_type in (
        ({"model_type": named.model_type}, {}) if kind != "emu3" else ({"model_type": named.model_type},)
    ):
        text = text_settings({"model_type": kind, "text_config": says | model_type})
        for key in SHAPE_KEYS:
            assert text.get(key) == getattr(named, key, None), key


def test_the_file_of_a_gemma_that_also_sees_is_read(tiny_model_dir, tmp_path):
    shutil.copy(tiny_model_dir / "tokenizer.json", tmp_path)
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "text_config": text,
    }
    facts = _facts("gemma", "", "", None, tmp_path, config, 0)
    assert (facts.layers, facts.kv_heads, facts.head_dim, facts.context, facts.vocabulary) == (
        34,
        4,
        256,
        131072,
        262208,
    )
    assert facts.positions == Positions("rotary", 1.0) and not facts.refusals


def saved(folder, config: Any) -> dict[str, Any]:
    """What transformers writes and reads again."""
    config.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


LONG = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
LLAMA3 = {**YARN, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
HEADS = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
HALF_SLIDING = ["sliding_attention", "full_attention"] * 2


@pytest.mark.parametrize(
    ("family", "options", "limits", "word"),
    [
        (
            "Phi3",
            {
                "original_max_position_embeddings": 56,
                "max_position_embeddings": 256,
                **HEADS,
                "rope_parameters": {"rope_type": "longrope", **LONG},
            },
            [56],
            "",
        ),
        ("Phi3", {"sliding_window": 2047}, [2047], ""),
        (
            "Llama",
            {
                "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                "max_position_embeddings": 64,
            },
            [64],
            "",
        ),
        ("Llama", {"rope_parameters": YARN}, [], ""),
        ("Llama", {"rope_parameters": LLAMA3}, [], ""),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, [], ""),
        ("Mistral", {"sliding_window": None}, [], ""),
        ("Mistral", {"sliding_window": 32}, [32], ""),
        ("Mixtral", {"sliding_window": 32}, [32], ""),
        (
            "Qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 32,
                "max_window_layers": 2,
                "num_hidden_layers": 4,
            },
            [32],
            "",
        ),
        (
            "Qwen2",
            {
                "use_sliding_window": True,
                "sliding_window": 32,
                "max_window_layers": 4,
                "num_hidden_layers": 4,
            },
            [],
            "",
        ),
        ("Qwen2", {"use_sliding_window": False, "sliding_window": 32}, [], ""),
        ("Qwen2Moe", {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": 4}, [32], ""),
        ("Gemma2", {"layer_types": ["full_attention"] * 4, "num_hidden_layers": 4}, [], ""),
        ("Gemma3Text", {"sliding_window": 64}, [64], ""),
        ("Gemma3Text", {"use_bidirectional_attention": True}, [], "use_bidirectional_attention True"),
        ("Gemma3nText", {"num_kv_shared_layers": 0}, [512], ""),
        ("Gemma3nText", {"num_kv_shared_layers": 10}, [], "num_kv_shared_layers 10"),
        (
            "Gemma4Text",
            {"layer_types": HALF_SLIDING, "head_dim": 8, "global_head_dim": 8, **HEADS},
            [512],
            "",
        ),
        (
            "Gemma4Text",
            {"layer_types": HALF_SLIDING, "head_dim": 8, "global_head_dim": 16, **HEADS},
            [],
            "head_dim 16, 8",
        ),
        (
            "Gemma4Text",
            {
                "layer_types": HALF_SLIDING,
                "head_dim": 8,
                "global_head_dim": 8,
                "num_kv_shared_layers": 2,
                **HEADS,
            },
            [],
            "num_kv_shared_layers 2",
        ),
        ("Cohere", {"logit_scale": 1.0}, [], ""),
        ("Cohere", {"logit_scale": 0.5}, [], "logit_scale 0.5"),
        ("Cohere2", {"logit_scale": 1.0, "sliding_window": 64}, [64], ""),
        ("Granite", {"logits_scaling": 8.0}, [], "logits_scaling 8"),
        ("GraniteMoeHybrid", {"layer_types": ["attention"] * 4, "num_hidden_layers": 4}, [], ""),
        (
            "GraniteMoeHybrid",
            {"layer_types": ["mamba", "attention"] * 2, "num_hidden_layers": 4},
            [],
            "linear_attention",
        ),
        ("Llama4Text", {"attention_chunk_size": 128}, [128], ""),
        ("Llama4Text", {"attention_chunk_size": None}, [8191], ""),
        ("Llama4Text", {"attention_chunk_size": None, "attn_temperature_tuning": False}, [], ""),
        ("Lfm2", {"full_attn_idxs": [2, 5], "num_hidden_layers": 6}, [], "conv"),
        ("BertGeneration", {"is_decoder": True}, [], ""),
        ("Bert", {"is_decoder": True}, [], "further layers"),
        ("Bart", {"is_encoder_decoder": False, "is_decoder": True}, [], "encoder"),
        ("GPT2", {"add_cross_attention": True}, [], "add_cross_attention"),
        (
            "Llama",
            {"quantization_config": {"quant_method": "awq", "bits": 4}},
            [],
            "quantization_config, awq",
        ),
        ("Falcon", {"alibi": True}, [], "its own code"),
        ("DeepseekV3", {}, [], "kv_lora_rank 512"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_decisions_for_files_that_transformers_writes(family, options, limits, word, tmp_path):
    """The reason need not be the first: a model may be refused for several."""
    architecture = read_architecture(saved(tmp_path, getattr(transformers, f"{family}Config")(**options)))
    assert word in "\n".join(architecture.refusals) and bool(word) == bool(architecture.refusals)
    assert word or [limit.tokens for limit in architecture.limits] == limits


LLAMA = {"model_type": "llama", "max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "limits"),
    [
        (LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, [4096]),
        (LLAMA | {"rope_scaling": {"type": "linear", "factor": 2.0}}, []),
        (LLAMA | {"rope_scaling": None}, []),
        (LLAMA | {"rope_scaling": {"type": "su", **LONG}, "original_max_position_embeddings": 512}, [512]),
        (
            LLAMA | {"rope_scaling": {"type": "longrope", **LONG, "original_max_position_embeddings": 256}},
            [256],
        ),
        (LLAMA | {"rope_scaling": {"type": "longrope", **LONG}}, [4096]),
        (
            LLAMA
            | {
                "rope_parameters": {
                    "full_attention": None,
                    "sliding_attention": {
                        "rope_type": "longrope",
                        **LONG,
                        "original_max_position_embeddings": 128,
                    },
                }
            },
            [128],
        ),
        ({"model_type": "qwen2", "sliding_window": 32768}, []),
        ({"model_type": "qwen2", "sliding_window": 32768, "use_sliding_window": True}, [32768]),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 64,
                "use_sliding_window": True,
                "max_window_layers": 28,
                "num_hidden_layers": 28,
            },
            [],
        ),
        ({"model_type": "mistral", "sliding_window": 64, "use_sliding_window": False}, [64]),
        ({"model_type": "unknown", "sliding_window": 64, "layer_types": ["full_attention"]}, []),
        ({"model_type": "unknown", "sliding_window": 64}, [64]),
        ({"model_type": "unknown", "sliding_window": 0}, []),
        ({"model_type": "unknown", "sliding_window": -1}, []),
        ({"model_type": "gemma3", "text_config": {"sliding_window": 16}}, [16]),
        ({}, []),
    ],
    ids=str,
)
def test_limits_of_files_of_other_versions(config, limits):
    assert told(config) == (limits, "")


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"kv_lora_rank": 64}, "kv_lora_rank 64"),
        ({"model_type": "gemma4", "text_config": {}}, "head_dim 256, 512"),
        ({"index_topk": 2048}, "index_topk 2048"),
        ({"sparse_attention_config": {"sparse_attention_freq": [0, 1]}}, "sparse_attention_config"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"block_types": ["recurrent", "attention"]}, "recurrent"),
        ({"use_cla": True}, "use_cla"),
        ({"model_type": "baichuan", "alibi": True}, "alibi True"),
        ({"is_causal": False}, "is_causal false"),
        ({"text_config": {"model_type": "llama"}, "quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (
            {"text_config": {"is_encoder_decoder": False}, "is_encoder_decoder": True},
            "is_encoder_decoder True",
        ),
        ({"model_type": "got_ocr2", "text_config": {"model_type": "qwen2"}}, "its own code"),
        ({"lm_head_multiplier": 0.5}, "lm_head_multiplier 0.5"),
    ],
    ids=str,
)
def test_refusals_by_a_setting_whatever_the_family(config, word):
    assert word in told(config)[1]


@pytest.mark.parametrize(
    "config",
    [
        {"sliding_window": "8"},
        {"sliding_window": -5},
        {"sliding_window": 1.5},
        {"sliding_window": True},
        {"layer_types": "full_attention"},
        {"layer_types": [1]},
        {"text_config": []},
        {"model_type": ["llama"]},
        {"rope_parameters": ["x"]},
        {"rope_scaling": {"type": 3}},
        {"rope_scaling": {"type": "dynamic"}},
        {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": "4k"}},
        {"kv_lora_rank": []},
        {"num_kv_shared_layers": "two"},
        {"logit_scale": "1"},
        {"quantization_config": "4bit"},
        {"attention_chunk_size": {}},
        {"per_layer_config": {"0": 3}, "head_dim": 8},
        {"per_layer_config": {"0": {"head_dim": []}}},
        {"index_topk": "many"},
        {"sparse_attention_config": 1},
    ],
    ids=str,
)
def test_a_setting_of_the_wrong_type_is_a_value_error_that_names_it(config):
    (key, *_) = config
    with pytest.raises(ValueError, match=r"^(?!.*Traceback)") as caught:
        read_architecture(config)
    names = {key, "rope_type", "original_max_position_embeddings", "head_dim", "0"}
    assert any(name in str(caught.value) for name in names)


def test_a_limit_says_why_in_a_clause_that_stands_alone():
    (limit,) = read_architecture({"sliding_window": 512}).limits
    assert limit == Limit(512, "some of its layers attend to the last 512 tokens only (sliding_window)")
