"""A tiny CLIP image tower for the tests, and the key names of its layouts."""

from fdjax_models.networks.clip import ClipImageEncoderConfig

CONFIG = ClipImageEncoderConfig(
    image_size=28,
    patch_size=14,
    width=32,
    mlp_dim=64,
    num_layers=3,
    output_layer=2,
    num_heads=4,
    dtype="float32",
)


def _positions(config):
    return (config.image_size // config.patch_size) ** 2 + 1


def _affine(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name, out, into):
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def published_shapes(config=CONFIG, prefix="vision_model.") -> dict[str, tuple]:
    """Shapes of the Hugging Face layout by key."""
    m, f, p = config.width, config.mlp_dim, config.patch_size
    shapes = {
        "embeddings.class_embedding": (m,),
        "embeddings.patch_embedding.weight": (m, 3, p, p),
        "embeddings.position_embedding.weight": (_positions(config), m),
        **_affine("pre_layrnorm", m),
        **_affine("post_layernorm", m),
    }
    for layer in range(config.num_layers):
        block = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{block}.self_attn.{name}", m, m)
        shapes |= _affine(f"{block}.layer_norm1", m)
        shapes |= _affine(f"{block}.layer_norm2", m)
        shapes |= _linear(f"{block}.mlp.fc1", f, m)
        shapes |= _linear(f"{block}.mlp.fc2", m, f)
    return {prefix + key: shape for key, shape in shapes.items()}


def bare_shapes(config=CONFIG) -> dict[str, tuple]:
    """Shapes of the Hugging Face layout without its prefix."""
    return published_shapes(config, prefix="")


def official_shapes(config=CONFIG) -> dict[str, tuple]:
    """Shapes of the tower in the official single file by key."""
    m, f, p = config.width, config.mlp_dim, config.patch_size
    shapes = {
        "patch_embedding.weight": (m, 3, p, p),
        "cls_embedding": (1, 1, m),
        "pos_embedding": (1, _positions(config), m),
        **_affine("pre_norm", m),
        **_affine("post_norm", m),
    }
    for layer in range(config.num_layers):
        block = f"transformer.{layer}"
        shapes |= _affine(f"{block}.norm1", m)
        shapes |= _affine(f"{block}.norm2", m)
        shapes |= _linear(f"{block}.attn.to_qkv", 3 * m, m)
        shapes |= _linear(f"{block}.attn.proj", m, m)
        shapes |= _linear(f"{block}.mlp.0", f, m)
        shapes |= _linear(f"{block}.mlp.2", m, f)
    return {"visual." + key: shape for key, shape in shapes.items()}
