"""The ring against a slow twin that follows the reference's rules with lists."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax.attention.kv_cache import KVLayout

LAYOUTS = [
    KVLayout(sink, window, chunk)
    for sink, window, chunk in itertools.product(range(6), range(1, 9), range(1, 7))
    if (sink + window) % chunk == 0 and (chunk > 1 or sink in (0, 3))
]
# (sink, window, chunk) of the published configs, in latent frames.
PUBLISHED = [(0, 21, 3), (5, 7, 3), (3, 15, 3), (0, 21, 1), (0, 63, 3), (0, 4, 2)]


class ListCache:
    """Slots in chronological order, shifted on overflow.

    The rules of `BlockKVCache` in NVIDIA/flashdreams, for tokens named by their
    position; nothing here knows of a ring.
    """

    def __init__(self, sink, window, chunk):
        self.sink, self.capacity, self.chunk = sink, sink + window, chunk
        self.slots = [None] * self.capacity
        self.num_cached = 0

    def chunk_tokens(self, index):
        return list(range(index * self.chunk, (index + 1) * self.chunk))

    def before_update(self, index):
        if index * self.chunk < self.sink:
            return
        overflow = self.num_cached + self.chunk - self.capacity
        if overflow > 0:
            kept = self.slots[self.sink :][overflow:]
            self.slots[self.sink :] = kept + [None] * (
                self.capacity - self.sink - len(kept)
            )
            self.num_cached = self.capacity

    def update(self, index):
        start = min(self.num_cached, self.capacity - self.chunk)
        tokens = self.chunk_tokens(index)
        if start < self.sink <= index * self.chunk:
            tokens = tokens[self.sink - start :]
            start = self.sink
        self.slots[start : start + len(tokens)] = tokens

    def visible(self):
        return self.slots[: min(self.num_cached + self.chunk, self.capacity)]

    def after_update(self):
        self.num_cached = min(self.num_cached + self.chunk, self.capacity)


def visible_sets(layout, num_chunks):
    """Tokens that each chunk sees, in the reference's slot order."""
    twin = ListCache(layout.sink, layout.window, layout.chunk)
    for index in range(num_chunks):
        twin.before_update(index)
        twin.update(index)
        yield twin.visible()
        twin.after_update()


@functools.cache
def slot_tables(layout, num_chunks):
    """`slots`, `valid_length`, `slot_positions`, `chunk_positions` of each chunk."""

    @jax.jit
    @jax.vmap
    def tables(num_tokens):
        return (
            layout.slots(num_tokens),
            layout.valid_length(num_tokens),
            layout.slot_positions(num_tokens),
            layout.chunk_positions(num_tokens),
        )

    num_tokens = np.arange(num_chunks, dtype=np.int32) * layout.chunk
    return list(zip(*map(np.asarray, tables(num_tokens)), strict=True))


def ring_contents(layout, tables):
    """Token ids in the slots after each chunk, by `slots` alone."""
    contents = np.full(layout.capacity, -1)
    for index, (slots, *_) in enumerate(tables):
        for token, slot in enumerate(slots, start=index * layout.chunk):
            if slot < layout.capacity:
                contents[slot] = token
        yield contents.copy()


@pytest.mark.parametrize("chunk", range(1, 7))
def test_visible_tokens_and_their_order_are_the_references(chunk):
    num_chunks = 40  # at least twice the capacity; one number keeps eager jax cached
    for layout in (layout for layout in LAYOUTS if layout.chunk == chunk):
        expected = visible_sets(layout, num_chunks)
        tables = slot_tables(layout, num_chunks)
        actual = ring_contents(layout, tables)
        for table, contents, tokens in zip(tables, actual, expected, strict=True):
            _, length, ranks, _ = table
            assert sorted(ranks) == list(range(layout.capacity)), layout
            in_order = np.empty_like(contents)
            in_order[ranks] = contents
            assert sorted(contents[:length]) == sorted(tokens), layout
            assert in_order[:length].tolist() == tokens, layout


@pytest.mark.parametrize("layout", LAYOUTS[:: len(LAYOUTS) // 20])
def test_chunk_positions_are_the_ranks_of_the_chunks_tokens(layout):
    for slots, length, ranks, positions in slot_tables(layout, 40):
        kept = slots < layout.capacity
        np.testing.assert_array_equal(positions[kept], ranks[slots[kept]])
        np.testing.assert_array_equal(np.diff(positions), 1)
        assert positions[-1] == length - 1


@pytest.mark.parametrize(
    ("sink", "window", "chunk"),
    [*PUBLISHED, (1, 2, 3), (4, 2, 6), (7, 1, 4), (2, 7, 3), (2, 4, 2)],
)
def test_write_fills_the_slots_and_a_second_write_overwrites_the_first(
    sink, window, chunk
):
    layout = KVLayout(sink, window, chunk)
    write = jax.jit(layout.write)
    buffer = jnp.full((2, layout.capacity, 3, 1), -1.0)
    tables = slot_tables(layout, 3 * layout.capacity // chunk)
    for index, expected in enumerate(ring_contents(layout, tables)):
        num_tokens = index * chunk
        tokens = np.arange(num_tokens, num_tokens + chunk, dtype=np.float32)
        values = np.broadcast_to(tokens[None, :, None, None], (2, chunk, 3, 1))
        buffer = write(buffer, values + 0.5, jnp.int32(num_tokens))
        buffer = write(buffer, values, jnp.int32(num_tokens))
        for batch, head in ((0, 0), (1, 2)):
            np.testing.assert_array_equal(
                np.asarray(buffer)[batch, :, head, 0], expected
            )


def test_write_casts_to_the_dtype_of_the_buffer():
    layout = KVLayout(0, 4, 2)
    buffer = jnp.zeros((1, 4, 1, 2), jnp.bfloat16)
    written = layout.write(buffer, jnp.full((1, 2, 1, 2), 1.5, jnp.float32), 2)
    assert written.dtype == jnp.bfloat16
    np.testing.assert_array_equal(written[0, :, 0, 0], [0, 0, 1.5, 1.5])


@pytest.mark.parametrize("layout", [KVLayout(3, 6, 3), KVLayout(5, 7, 3)])
def test_one_executable_serves_filling_and_steady_state(layout):
    traces = []

    @jax.jit
    def step(buffer, num_tokens):
        traces.append(num_tokens)
        values = jnp.ones((1, layout.chunk, 1, 1))
        return layout.write(buffer, values, num_tokens), num_tokens + layout.chunk

    state = jnp.zeros((1, layout.capacity, 1, 1)), jnp.int32(0)
    for _ in range(8):
        state = step(*state)
    assert len(traces) == 1


def test_published_traces():
    """Frames visible to chunk i (wan-family fact sheet, section 2)."""
    visible = {
        sizes: list(visible_sets(KVLayout(*sizes), 25)) for sizes in PUBLISHED[:4]
    }
    assert visible[0, 21, 3][6] == [*range(21)]
    assert visible[0, 21, 3][8] == [*range(6, 27)]
    assert visible[5, 7, 3][4] == [*range(5), *range(8, 15)]
    assert visible[3, 15, 3][7] == [*range(3), *range(9, 24)]
    assert visible[0, 21, 1][21] == [*range(1, 22)]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((-1, 4, 1), r"sink must be >= 0, got -1"),
        ((3, 0, 3), r"window must be >= 1, got 0"),
        ((0, 4, 0), r"chunk must be >= 1, got 0"),
        ((2, 5, 3), r"2 \+ 5 = 7 with chunk 3; make the window 7 or 4\."),
        ((0, 2, 3), r"0 \+ 2 = 2 with chunk 3; make the window 3\."),
    ],
)
def test_sizes_that_cannot_work_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        KVLayout(*sizes)


def test_layout_is_hashable_and_compares_by_value():
    assert hash(KVLayout(1, 2, 3)) == hash(KVLayout(1, 2, 3))
    assert KVLayout(1, 2, 3) != KVLayout(2, 1, 3)


@pytest.mark.parametrize(
    ("sink", "window", "chunk"),
    [(0, 21, 3), (5, 7, 3), (3, 15, 3), (1, 2, 3), (4, 2, 6), (7, 1, 4), (0, 30, 4)],
)
def test_a_ring_of_any_age_is_one_of_its_first_rounds(sink, window, chunk):
    """Against Python's integers, which do not overflow."""
    layout = KVLayout(sink, window + (-(sink + window)) % chunk, chunk)
    window = layout.window
    tables = jax.jit(
        lambda count: (
            layout.slots(layout.ring_tokens(count)),
            layout.valid_length(layout.ring_tokens(count)),
            layout.slot_positions(layout.ring_tokens(count)),
        )
    )
    for count in (*range(40), 2**31 // chunk, 2**31 - 1, 2**31, 2**32 - 1):
        slots, length, ranks = map(np.asarray, tables(jnp.uint32(count)))
        first = count * chunk
        oldest = max(first + chunk - window, sink)
        expected = [
            p
            if p < sink
            else layout.num_slots
            if p < oldest
            else sink + (p - sink) % window
            for p in range(first, first + chunk)
        ]
        np.testing.assert_array_equal(slots, expected)
        assert length == min(first + chunk, layout.capacity)
        # The visible tokens, oldest first, stand in the slots of these ranks.
        visible = [
            *range(min(sink, first + chunk)),
            *range(oldest, first + chunk),
        ]
        held = [p if p < sink else sink + (p - sink) % window for p in visible]
        np.testing.assert_array_equal(ranks[held], range(len(visible)))


def test_a_period_too_long_to_count_is_refused():
    with pytest.raises(ValueError, match="make the window a multiple of the chunk"):
        KVLayout(9_999, 50_000_001, 10_000)


@pytest.mark.parametrize("layout", [KVLayout(2, 4, 2), KVLayout(3, 5, 4, 3)])
@pytest.mark.parametrize("chunks", [[5], [0, 3, 6]])
def test_what_is_read_before_a_write_takes_it_back(layout, chunks):
    num_tokens = layout.ring_tokens(jnp.array(chunks, jnp.uint32))
    shape = len(chunks), layout.num_slots, 1, 2
    buffer = jax.random.normal(jax.random.key(0), shape)
    values = jnp.ones((len(chunks), layout.chunk, 1, 2))
    kept = layout.read(buffer, num_tokens)
    written = layout.write(buffer, values, num_tokens)
    assert not np.array_equal(written, buffer)
    np.testing.assert_array_equal(layout.read(written, num_tokens), values)
    np.testing.assert_array_equal(layout.write(written, kept, num_tokens), buffer)
