"""Training of the diffusion transformer: all chunks of a walk in one pass.

Two streams run through the network side by side, a clean and a noisy copy of every
chunk. Noisy chunk i sees itself and the clean chunks i - W + 1 ... i - 1, clean chunk i
sees the clean chunks i - W + 1 ... i: exactly what the key/value cache shows when
chunk i is denoised and when it is committed (teacher forcing as in CausVid,
arXiv:2412.07772, and Self-Forcing, arXiv:2506.08009). `denoiser_test.py` holds the two
paths against each other.

Long rollouts drift if the network has only ever seen perfect history. So the clean
stream is noised a little, and part of its chunks are replaced with the network's own
predictions from noised ground truth: the errors are the model's, the layout stays the
simulator's, and the target stays the ground truth.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from fdjax.attention.rope import Rope3D, rope_table
from fdjax.axes import Array, Params
from fdjax.streaming.attention import SelfAttentionFn
from fdjax_models.methods.maze_world import text
from fdjax_models.methods.maze_world.encoder import control_features
from fdjax_models.methods.maze_world.training.data import Clip
from fdjax_models.networks.wan_dit.config import WanDiTConfig
from fdjax_models.networks.wan_dit.dit import WanDiT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The network and how it is trained.

    Attributes:
        config: Sizes of the network.
        height: Latent rows.
        width: Latent columns.
        window: Chunks W that the cache holds, the current one included.
        attention: Implementation of `jax.nn.dot_product_attention`.
        shift: Skews noise levels upwards: s u / (1 + (s - 1) u), u uniform.
        pure_noise_share: Share of chunks trained at noise level 1, where few-step
            sampling makes its largest step.
        context_noise_limit: Largest noise level of the clean stream.
        word_dropout: Share of the prompt's words left out.
        first_chunk_weight: Weight of the first chunk's loss, which is the only one that
            is predicted from the prompt alone.
    """

    config: WanDiTConfig
    height: int
    width: int
    window: int
    attention: Literal["xla", "cudnn"] = "xla"
    shift: float = 3.0
    pure_noise_share: float = 0.2
    context_noise_limit: float = 0.35
    word_dropout: float = 0.12
    first_chunk_weight: float = 3.0

    @functools.cached_property
    def network(self) -> WanDiT:
        """The linen module."""
        return WanDiT(self.config)

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens L of one latent frame."""
        _, rows, columns = self.config.patch_size
        return (self.height // rows) * (self.width // columns)

    def forward(
        self,
        params: Params,
        clean: Array,
        clean_level: Array,
        noisy: Array,
        level: Array,
        controls: Array,
        tokens: Array,
        is_first: Array | None = None,
    ) -> Array:
        """Predicts the flow of every noisy chunk.

        Args:
            params: Holds "transformer" and "text_encoder".
            clean: Patchified context.  [B, T L, C].
            clean_level: Its noise level, in [0, 1].  float32[B, T].
            noisy: Patchified noisy chunks.  [B, T L, C].
            level: Their noise levels.  float32[B, T].
            controls: float32[B, T, 4, 2].
            tokens: Tokens of the prompts.  int32[B, P].
            is_first: Which chunks begin a rollout; None: those at T = 0.  bool[B, T].

        Returns:
            float32[B, T L, C].
        """
        variables = {"params": params["transformer"]}
        # int32[B, P] -> [B, P, C]
        prompt = params["text_encoder"]["table"][tokens].astype(self.config.dtype)
        context = self.network.apply(variables, prompt, method="context")
        # Four keys are no work for cuDNN; float32 ones take the XLA back end.
        context = jax.tree.map(lambda x: x.astype(jnp.float32), context)
        if is_first is None:
            is_first = jnp.arange(controls.shape[1]) == 0
        features = control_features(controls, is_first)
        outputs: Any = self.network.apply(
            variables,
            # [B, 2 T L, C]
            jnp.concatenate([clean, noisy], axis=1),
            # float32[B, 2 T]: a timestep per chunk, 1000 times its level.
            1000 * jnp.concatenate([clean_level, level], axis=1),
            self._two_stream_attention(controls.shape[1]),
            (None,) * self.config.num_layers,
            context,
            # [B, 2 T, features]: both copies of a chunk have the same keys held.
            vector_features=jnp.concatenate([features, features], axis=1),
        )
        _, flow = outputs
        # [B, 2 T L, C] -> [B, T L, C]
        return flow[:, clean.shape[1] :]

    def _two_stream_attention(self, num_chunks: int) -> SelfAttentionFn:
        """The self-attention function of both streams."""
        rope = Rope3D(self.config.head_dim, interleaved=True)
        _, rows, columns = self.config.patch_size
        angles = rope.angles(
            jnp.arange(num_chunks), self.height // rows, self.width // columns
        )
        table = rope_table(angles, self.config.dtype)
        see_clean, see_noisy = (
            # bool[1, 1, queries, keys]
            jnp.asarray(mask)[None, None]
            for mask in visibility(num_chunks, self.tokens_per_chunk, self.window)
        )

        def attend(query: Array, key: Array, mask: Array, value: Array) -> Array:
            return jax.nn.dot_product_attention(
                query, key, value, mask=mask, implementation=self.attention
            )

        if self.attention == "xla":  # which would keep every score for the gradient
            attend = jax.checkpoint(attend)

        def attention(
            query: Array, key: Array, value: Array, state: None
        ) -> tuple[None, Array]:
            # [B, 2 T L, N, D], clean tokens first; both streams have the same angles.
            half = query.shape[1] // 2
            query, key = (
                jnp.concatenate(
                    [rope.rotate(x[:, :half], table), rope.rotate(x[:, half:], table)],
                    axis=1,
                )
                for x in (query, key)
            )
            # [B, T L, N, D] each; the noisy queries see keys of both streams.
            clean = attend(query[:, :half], key[:, :half], see_clean, value[:, :half])
            noisy = attend(query[:, half:], key, see_noisy, value)
            return state, jnp.concatenate([clean, noisy], axis=1)

        return attention

    def patchify(self, latent: Array) -> Array:
        """[B, T, H, W, C] to [B, T L, 4 C], features ordered (channel, row, column)."""
        b, t, h, w, c = latent.shape
        _, rows, columns = self.config.patch_size
        # [B, T, H / p, p, W / p, p, C]
        x = latent.reshape(b, t, h // rows, rows, w // columns, columns, c)
        # [B, T, H / p, W / p, C, p, p]
        x = x.transpose(0, 1, 2, 4, 6, 3, 5)
        # [B, T L, C p p]
        return x.reshape(b, t * self.tokens_per_chunk, c * rows * columns)

    def unpatchify(self, tokens: Array) -> Array:
        """The inverse of `patchify`."""
        _, rows, columns = self.config.patch_size
        grid = (self.height // rows, self.width // columns)
        # [B, T L, C p p] -> [B, T, H / p, W / p, C, p, p]
        x = tokens.reshape(len(tokens), -1, *grid, self.config.out_dim, rows, columns)
        # [B, T, H / p, p, W / p, p, C]
        x = x.transpose(0, 1, 2, 5, 3, 6, 4)
        # [B, T, H, W, C]
        return x.reshape(*x.shape[:2], self.height, self.width, self.config.out_dim)

    def loss(
        self, params: Params, clips: Clip, key: jax.Array, own_share: Array | None
    ) -> tuple[Array, Array]:
        """The flow-matching loss of a batch of encoded clips.

        Args:
            params: Holds "transformer" and "text_encoder".
            clips: Latents in `video`.  [B, T, H, W, C].
            key: A PRNG key.
            own_share: Largest share of context chunks that are the model's own
                predictions; 0 skips the extra pass. None leaves it out of the program,
                and every other robustness measure too.  float32[].

        Returns:
            The mean squared error of the flow, and by quarter of noise level, [4].
        """
        keys = jax.random.split(key, 6)
        target = self.patchify(clips.video.astype(jnp.float32))
        tokens, clean = clips.tokens, target
        clean_level = jnp.zeros(clips.controls.shape[:2])
        if own_share is not None:
            tokens = drop_words(keys[0], tokens, self.word_dropout)
            history = jax.lax.cond(
                own_share > 0,
                lambda: self._own_history(
                    params, target, clips.controls, tokens, keys[1], own_share
                ),
                lambda: target,
            )
            clean, clean_level = self.noised_context(keys[2], history, len(tokens))
        level = self._levels(keys[3], clips.controls.shape[:2])
        noise = jax.random.normal(keys[4], target.shape)
        noisy = self.mix(target, noise, level)
        flow = self.forward(
            params, clean, clean_level, noisy, level, clips.controls, tokens
        )
        error = jnp.square(flow - (noise - target))
        # [B, T L, C] -> [B, T, L C] -> [B, T]
        error = error.reshape(*level.shape, -1).mean(-1)
        # float32[B, T, 4]
        quarter = jax.nn.one_hot(jnp.minimum((level * 4).astype(jnp.int32), 3), 4)
        # [4]; NaN where no chunk has such a level, which the mean over steps skips.
        by_quarter = (error[..., None] * quarter).sum((0, 1)) / quarter.sum((0, 1))
        # [T]
        weight = jnp.ones(level.shape[1]).at[0].set(self.first_chunk_weight)
        return (error * weight).mean(), by_quarter

    def _own_history(
        self,
        params: Params,
        target: Array,
        controls: Array,
        tokens: Array,
        key: jax.Array,
        own_share: Array,
    ) -> Array:
        """The ground truth, with some chunks as the network itself predicts them."""
        keys = jax.random.split(key, 5)
        batch, num_chunks = controls.shape[:2]
        clean, clean_level = self.noised_context(keys[0], target, batch)
        level = self._levels(keys[1], (batch, num_chunks))
        noise = jax.random.normal(keys[2], target.shape)
        noisy = self.mix(target, noise, level)
        flow = self.forward(params, clean, clean_level, noisy, level, controls, tokens)
        # x_0 = x_sigma - sigma flow
        own = noisy - self.per_token(level) * flow
        # Per clip, so that the network sees every share up to the largest.
        share = own_share * jax.random.uniform(keys[3], (batch, 1))
        chosen = jax.random.uniform(keys[4], (batch, num_chunks)) < share
        # The start is often a given image, which is exact.
        chosen = chosen.at[:, 0].set(chosen[:, 0] & chosen[:, 1])
        own = jnp.where(self.per_token(chosen) > 0, own, target)
        return jax.lax.stop_gradient(own)

    def noised_context(
        self, key: jax.Array, history: Array, batch: int
    ) -> tuple[Array, Array]:
        """The clean stream: exact for half of the clips, noised for the others."""
        key_is, key_level, key_noise = jax.random.split(key, 3)
        is_noised = jax.random.bernoulli(key_is, 0.5, (batch, 1))
        level = jax.random.uniform(key_level, (batch, 1)) * self.context_noise_limit
        num_chunks = history.shape[1] // self.tokens_per_chunk
        # [B, 1] -> [B, T]: one level for all chunks of a clip.
        level = jnp.broadcast_to(is_noised * level, (batch, num_chunks))
        noise = jax.random.normal(key_noise, history.shape)
        return self.mix(history, noise, level), level

    def _levels(self, key: jax.Array, shape: tuple[int, ...]) -> Array:
        key_level, key_pure = jax.random.split(key)
        level = jax.random.uniform(key_level, shape, minval=0.01)
        # The warp of `fdjax.schedulers.levels` (arXiv:2403.03206, equation 23).
        level = self.shift * level / (1 + (self.shift - 1) * level)
        pure = jax.random.bernoulli(key_pure, self.pure_noise_share, shape)
        return jnp.where(pure, 1.0, level)

    def per_token(self, per_chunk: Array) -> Array:
        """[B, T] to float32[B, T L, 1]."""
        # [B, T] -> [B, T L]
        tokens = jnp.repeat(per_chunk, self.tokens_per_chunk, axis=1)
        return tokens[..., None].astype(jnp.float32)

    def mix(self, clean: Array, noise: Array, level: Array) -> Array:
        """(1 - level) clean + level noise."""
        # [B, T] -> [B, T L, 1]
        level = self.per_token(level)
        return (1 - level) * clean + level * noise


def visibility(
    num_chunks: int, tokens_per_chunk: int, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Who sees whom, as boolean masks of (query token, key token).

    Args:
        num_chunks: Chunks T of a clip.
        tokens_per_chunk: Tokens L of a chunk.
        window: Chunks that the cache holds, the current one included.

    Returns:
        For queries of the clean stream over clean keys, [T L, T L]; for queries of the
        noisy stream over clean, then noisy keys, [T L, 2 T L].
    """
    # [T, T]: by how many chunks the key is older than the query.
    ages = np.arange(num_chunks)[:, None] - np.arange(num_chunks)[None]
    past = (ages > 0) & (ages < window)
    itself = ages == 0
    block = np.ones((tokens_per_chunk, tokens_per_chunk), bool)
    # [T, T] -> [T L, T L]
    clean = np.kron(past | itself, block)
    # [T, 2 T] -> [T L, 2 T L]
    noisy = np.kron(np.concatenate([past, itself], axis=1), block)
    return clean, noisy


def drop_words(key: jax.Array, tokens: Array, share: float) -> Array:
    """Replaces some words, and sometimes all of a prompt, with "not said"."""
    key_word, key_all = jax.random.split(key)
    dropped = jax.random.bernoulli(key_word, share, tokens.shape)
    # bool[B, 1]: a whole prompt at a time.
    dropped |= jax.random.bernoulli(key_all, share / 3, (len(tokens), 1))
    return jnp.where(dropped, jnp.array(text.UNSAID_IDS), tokens)
