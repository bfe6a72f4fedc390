"""Embeddings that the reference has saved by `torch.save`, read without torch."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

from fdjax.run import registry
from tests.convert import torch_files
from tests.methods.omnidreams.omnidreams_test import HEIGHT, MV, SV, WIDTH, tiny

FORCING = next(slug for slug in registry.runner_configs() if "chunk2-loc24" in slug)


def content(views=1, negative=False):
    """What the reference keeps, for the tiny networks."""
    rng = np.random.default_rng(0)
    text = rng.standard_normal((1, views, 200, 32)).astype(ml_dtypes.bfloat16)
    frame = (1, views, 1, 16, HEIGHT // 8, WIDTH // 8)
    return {
        "text_embeddings": text,
        "image_embeddings": rng.standard_normal(frame).astype(ml_dtypes.bfloat16),
        "negative_text_embeddings": text + 1 if negative else None,
    }


def load(slug, path, folder):
    config = tiny(slug, folder, embeddings_path=str(path), prompt="")
    return config.setup().prepare().conditions


@pytest.mark.parametrize(
    ("slug", "views", "negative"), [(SV, 1, False), (MV, 4, False), (FORCING, 1, True)]
)
def test_the_reference_s_file_is_read(slug, views, negative, tmp_path):
    given = content(views, negative)
    path = torch_files.save(tmp_path / "kept.pt", given)
    found = load(slug, path, tmp_path)
    np.testing.assert_array_equal(found.text, given["text_embeddings"])
    image = np.moveaxis(np.asarray(found.image_embedding), -1, 3)
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image, given["image_embeddings"])
    if negative:
        np.testing.assert_array_equal(
            found.negative_text, given["negative_text_embeddings"]
        )
    else:
        assert found.negative_text is None


def changed(**fields):
    return content() | fields


NAN = np.full((1, 1, 200, 32), np.nan, np.float32)
BAD = {
    "a list": ([np.zeros(3, np.float32)], "must hold embeddings, a dict of tensors"),
    "a number": (changed(steps=3), "must hold embeddings, a dict of tensors"),
    "weights": ({"net.x": NAN}, "must hold text_embeddings, .* and holds net.x"),
    "no frame": (changed(image_embeddings=None), "must hold text_embeddings, image"),
    "another encoder": (
        changed(text_embeddings=np.zeros((1, 1, 200, 30), np.float32)),
        r"text_embeddings must have shape \(B, 1, 200, 32\).*got \(1, 1, 200, 30\)",
    ),
    "another size": (
        changed(image_embeddings=np.zeros((1, 1, 1, 16, 8, 6), np.float32)),
        r"image_embeddings must have shape \(B, 1, 1, 16, 4, 6\)",
    ),
    "views": (content(4), r"must have shape \(B, 1, 200, 32\).*got \(1, 4, 200"),
    "ids": (
        changed(text_embeddings=np.zeros((1, 1, 200, 32), np.int64)),
        "text_embeddings must be floating point, got int64",
    ),
    "sessions": (
        changed(text_embeddings=np.zeros((2, 1, 200, 32), np.float32)),
        "one batch size",
    ),
    "nan": (changed(text_embeddings=NAN), "must be finite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused(name, tmp_path):
    given, message = BAD[name]
    path = torch_files.save(tmp_path / "kept.pt", given)
    with pytest.raises(ValueError, match=message) as caught:
        load(SV, path, tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_guidance_needs_the_negative_prompt_s(tmp_path):
    path = torch_files.save(tmp_path / "kept.pt", content())
    with pytest.raises(ValueError, match="negative_text_embeddings are None"):
        load(FORCING, path, tmp_path)


def test_other_methods_know_no_such_file(tmp_path):
    path = torch_files.save(tmp_path / "kept.pt", content())
    config = registry.runner_configs()["wan21-t2v-1.3b-480p"].tiny()
    config = dataclasses.replace(
        config, embeddings_path=str(path), output_dir=str(tmp_path)
    )
    with pytest.raises(ValueError, match="knows no embeddings of another program"):
        config.setup().prepare()


def test_a_torn_file_is_refused(tmp_path):
    path = torch_files.save(tmp_path / "kept.pt", content())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"kept\.pt"):
        load(SV, path, tmp_path)
