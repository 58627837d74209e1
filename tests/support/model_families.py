"""What planning says of every family of causal language models in transformers, with its default
configuration.

A literal table: each family's code was read, and tried on a small random instance where one could be made. A
new version of transformers with families that are not here fails ``test_architecture_files``, which is how
they are noticed.
"""

FAMILIES = """
exact: apertus arcee aria_text biogpt bitnet cohere_compass_text ctrl dbrx dots1 emu3 ernie4_5 ernie4_5_moe
exact: flex_olmo fuyu gemma glm glm4 glm4_moe gpt-sw3 gpt2 gpt_bigcode gpt_neox granite granitemoe
exact: granitemoeshared helium hrm_text hunyuan_v1_dense hunyuan_v1_moe hy_v3 hyperclovax internlm3
exact: iquestcoder jais2 laguna lfm2 llama mellum minimax_m2 minimax_m3_vl_text ministral3 mixtral
exact: moss_transcribe_diarize nanochat nemotron olmo olmo2 olmoe opt persimmon phi phi3 phi4_multimodal
exact: phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 solar_open stablelm starcoder2
up to 512: beam
up to 513: kolibri1
up to 1024: afmoe
up to 3000: moshi
up to 4096: exaone4 exaone_moe gemma2 gemma3 gemma3_text ministral mistral olmo3 vaultgemma
up to 8191: llama4 llama4_text
up to 8192: cwm
refused for another model: gemma4_assistant
refused for differential: diffllama
refused for earlier layers: gemma3n gemma3n_text gemma4_unified_assistant
refused for encoder: bart bigbird_pegasus blenderbot blenderbot-small marian mbart musicgen musicgen_melody
refused for encoder: pegasus plbart whisper
refused for further layers: modernbert-decoder
refused for image: git
refused for latents: axk1 deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 youtu
refused for later ones: bert bert-generation camembert data2vec-text electra ernie roberta
refused for later ones: roberta-prelayernorm roc_bert xlm-roberta xlm-roberta-xl xmod
refused for learned: doge
refused for logit_scale: cohere cohere2 cohere2_moe
refused for not every layer: axk2 bailing_hybrid deepseek_v32 deepseek_v4 dots3_note dots3_note_text
refused for not every layer: glm_moe_dsa granitemoehybrid hy_v4 inkling2_text inkling_text kimi_linear lfm3
refused for not every layer: minimax nemotron_h olmo_hybrid qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text
refused for not every layer: qwen3_next qwen4_exp qwen4_exp_text recurrent_gemma zamba zamba2 zaya
refused for own code: big_bird bloom codegen cpmant falcon got_ocr2 gpt_neo gpt_neox_japanese gptj
refused for own code: megatron-bert mpt mvp openai-gpt prophetnet reformer rembert roformer trocr xglm xlm
refused for own code: xlnet
refused for repeats its keys: jetmoe
refused for running state: bamba falcon_h1 falcon_mamba jamba lfm2_moe mamba mamba2 rwkv xlstm
refused for several caches: blt
refused for shapes: gemma4 gemma4_text gemma4_unified gemma4_unified_text
refused for sinks: flint gpt_oss granite_swa granitemoe_swa mimo_v2_flash
refused for something else: mllama
"""
"""Exact at any length, exact up to so many tokens, or refused, with a word of the first reason."""


def verdicts() -> dict[str, str]:
    """Family -> verdict; a family that is listed twice is an error."""
    table: dict[str, str] = {}
    for line in FAMILIES.strip().splitlines():
        verdict, kinds = line.split(": ")
        for kind in kinds.split():
            assert kind not in table, kind
            table[kind] = verdict
    return table
