"""flashdreams 0.1.0's Cosmos DiT with what OmniDreams adds to it: HD map and views.

The package has the network for one view without a map. A map is one more linear layer,
added behind the patch embedding. Views are its batch axis; the attention between them
and their modulation are written here, of the package's own attention module.
"""

import torch
from flashdreams.recipes.cosmos.transformer.impl import modules, network
from torch import nn

EPS = 1e-6


class ViewBlock(modules.Block):
    """A block that adds its view's vectors to the modulation and looks across views."""

    def add_views(self, dim: int, heads: int, frames: int) -> None:
        """Adds the modules, by the names of checkpoints, to a plain block."""
        self.frames = frames
        self.layer_norm_cross_view_attn = nn.LayerNorm(dim, eps=EPS)
        self.cross_view_attn = modules.CrossAttention(
            query_dim=dim, context_dim=dim, n_heads=heads, head_dim=dim // heads
        )
        self.vectors = None

    def _branch(self, x, modulation, norm, layer, emb, shared, vectors):
        own = modulation(emb) + shared + vectors[:, None]
        shift, scale, gate = own.chunk(3, dim=-1)
        return x + gate * layer(norm(x) * (1 + scale) + shift)

    def _across(self, x):
        """[V, L, D]: attention over the tokens of all views that share a frame."""
        views, length, dim = x.shape
        y = self.layer_norm_cross_view_attn(x)
        y = y.reshape(views, self.frames, length // self.frames, dim).transpose(0, 1)
        y = y.reshape(self.frames, -1, dim)
        y = self.cross_view_attn(y, self.cross_view_attn.initialize_cache(y))
        y = y.reshape(self.frames, views, -1, dim).transpose(0, 1)
        return x + y.reshape(views, length, dim)

    def forward(self, x, emb, cache, rope_freqs, adaln_lora=None):
        """As the plain block, with `vectors` [V, 9 D]."""
        parts = self.vectors.chunk(3, dim=-1)

        def attend(y):
            return self.self_attn(y, rope_freqs=rope_freqs, kv_cache=cache.self_attn)

        def read(y):
            return self.cross_attn(y, kv_cache=cache.cross_attn)

        branches = (
            (self.adaln_modulation_self_attn, self.layer_norm_self_attn, attend),
            (self.adaln_modulation_cross_attn, self.layer_norm_cross_attn, read),
            (self.adaln_modulation_mlp, self.layer_norm_mlp, self.mlp),
        )
        for number, (modulation, norm, layer) in enumerate(branches):
            x = self._branch(x, modulation, norm, layer, emb, adaln_lora, parts[number])
            if number == 0:
                x = self._across(x)
        return x


def network_class(control_dim: int, cameras: tuple[int, ...], frames: int):
    """The package's network with a map of so many channels, and views if any."""

    class Network(network.CosmosDiTNetwork):
        def __init__(self, config):
            super().__init__(config)
            dim = config.model_channels
            if control_dim:
                self.additional_patch_embedding = modules.PatchEmbed(
                    spatial_patch_size=2,
                    temporal_patch_size=1,
                    in_channels=control_dim,
                    out_channels=dim,
                )
                self.x_embedder.register_forward_hook(
                    lambda module, inputs, output: (
                        output + self.additional_patch_embedding(self.hdmap)
                    )
                )
            if cameras:
                self.adaln_view_embedder = nn.Embedding(7, dim)
                self.adaln_view_proj = nn.Linear(dim, 9 * dim)
                for block in self.blocks:
                    block.__class__ = ViewBlock
                    block.add_views(dim, config.num_heads, frames)

        def show(self, hdmap) -> None:
            """Sets the chunk's map.  [..., T, C, H, W]."""
            self.hdmap = self.patchify_and_maybe_split_cp(hdmap)

        def forward(self, *arguments, **options):
            if cameras:
                indices = torch.tensor(cameras)
                vectors = self.adaln_view_proj(self.adaln_view_embedder(indices))
                for block in self.blocks:
                    block.vectors = vectors
            return super().forward(*arguments, **options)

    return Network
