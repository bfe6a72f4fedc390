"""A tiny Cosmos-Reason1 in files of the published layout, and the reference on them."""

import contextlib
import pathlib
import types
from unittest import mock

import torch
import transformers

from tests.parity import flashdreams_cpu  # isort: split

from flashdreams.infra.encoder.text import cosmos_reason1 as reference

from tests.networks.cosmos_reason1 import tiny

del flashdreams_cpu  # imported for its effect

# What the published processor has, without its branches for pictures and videos.
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}{{ content['text'] }}{% endfor %}"
    "<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def model(config, seed=0):
    """A network of these sizes with random weights of effect."""
    torch.manual_seed(seed)
    halves = config.head_dim // 2
    text = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.epsilon,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": 1024,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_theta,
            "mrope_section": [halves - 2 * (halves // 3), halves // 3, halves // 3],
        },
        "tie_word_embeddings": False,
    }
    vision = {
        "depth": 1,
        "hidden_size": 8,
        "num_heads": 2,
        "intermediate_size": 8,
        "out_hidden_size": config.width,
    }
    network = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, tie_word_embeddings=False
        )
    ).eval()
    with torch.no_grad():
        for name, weight in network.named_parameters():
            # The library's init is so small that attention would hardly matter.
            scale = 0.3 if weight.ndim > 1 else 0.5
            weight.copy_(torch.randn_like(weight) * scale + ("norm" in name))
    return network


def write(folder):
    """A repository in the published layout; returns its folder."""
    model(tiny.CONFIG).save_pretrained(folder)
    tiny.tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tokenizer(folder):
    """The tokenizer of the folder, in the class of transformers."""
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


def encoder_config(folder, max_length=tiny.CONFIG.max_length):
    """The config of flashdreams' class over the folder."""
    return reference.CosmosReason1TextEncoderConfig(
        model_name=str(folder),
        revision=None,
        max_length=max_length,
        dtype=torch.float32,
    )


@contextlib.contextmanager
def readable():
    """Within it flashdreams' class reads a folder that has no processor of pictures."""

    def processor(name, **_):
        # The processor adds to the tokenizer only what prepares pictures.
        return types.SimpleNamespace(tokenizer=tokenizer(pathlib.Path(name)))

    loader = types.SimpleNamespace(from_pretrained=processor)
    with (
        mock.patch.object(reference, "maybe_download_hf_repo_on_rank0"),
        mock.patch.object(reference, "AutoProcessor", loader),
    ):
        yield
