"""The parts of scripts/benchmark.py that need no device: statistics, errors, text."""

import json
import pathlib

import numpy as np
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_spread_takes_the_nearest_rank():
    from benchmarking import measure

    values = measure.spread([float(value) for value in range(10, 0, -1)])
    assert values == {"median": 5.5, "p90": 9.0, "min": 1.0, "count": 10}
    assert measure.spread([3.0])["p90"] == 3.0
    assert measure.spread([]) == {}


def test_results_are_on_disk_as_they_come(tmp_path, capsys):
    from benchmarking import measure

    report = measure.Report(tmp_path / "part.json")
    report.append("rows", {"ms": 1.0})
    report.append("rows", {"ms": 2.0})
    assert json.loads(report.path.read_text()) == {"rows": [{"ms": 1.0}, {"ms": 2.0}]}
    assert capsys.readouterr().out.splitlines()[1] == '[part] rows: {"ms": 2.0}'


def test_errors_compare_the_chunks_that_both_have(tmp_path):
    from benchmarking import compare

    a, b = np.array([[3.0, 0.0]]), np.array([[3.0, 4.0]])
    compare.save_chunk(tmp_path, "a", 0, a, a)
    compare.save_chunk(tmp_path, "b", 0, b, None)
    compare.save_chunk(tmp_path, "b", 1, b, None)
    (row,) = compare.errors(tmp_path, [("a", "b")])
    assert (row["pair"], row["kind"], row["chunk"]) == ("a / b", "latent", 0)
    assert row["cosine"] == pytest.approx(0.6)
    assert row["relative_error"] == pytest.approx(0.8)


def test_a_worker_is_stopped_with_its_children_at_the_limit():
    from benchmarking import parts

    shell = ["bash", "-c"]
    assert parts._run_process([*shell, "exit 3"], {}, 9) == "exit status 3"
    assert parts._run_process([*shell, "true"], {}, 9) is None
    assert "skipped" in parts._run_process([*shell, "true"], {}, 0)
    assert "stopped" in parts._run_process([*shell, "sleep 60 & sleep 60"], {}, 0.2)


def test_table_gives_the_ratio_to_the_reference():
    from benchmarking import table

    def stages(diffuse):
        return {"diffuse_ms": {"median": diffuse, "p90": diffuse + 1}}

    text = table.render(
        {
            "command": "python scripts/benchmark.py",
            "spec": {},
            "environment": {"device": "a GPU"},
            "rollout": {"steady_taehv": stages(100.0)},
            "reference_eager": {"steady": stages(150.0)},
        }
    )
    assert "device: a GPU" in text
    assert "100.0 (101.0)" in text
    ratio = next(x for x in text.splitlines() if x.startswith("reference_eager /"))
    assert ratio.split()[3:5] == ["-", "1.50"]


@pytest.mark.parametrize("decoder", ["config", "taehv", "wan_vae", "none"])
def test_methods_take_the_decoder_and_dtype_of_the_flags(decoder):
    from benchmarking import methods

    config = methods.pipeline_config(
        "self-forcing-wan2.1-t2v-1.3b",
        decoder=decoder,
        dtype="float32",
        overrides={"diffusion_model": {"transformer": {"window_size_t": 9}}},
    )
    transformer = config.diffusion_model.transformer
    assert transformer.network.dtype == transformer.network.param_dtype == "float32"
    assert (config.decoder is None) == (decoder == "none")
    assert config.setup().latent_size(480, 832) == (60, 104)
    assert methods.first_steady_chunk(config) == 3
    reference = methods.reference_spec(config)
    assert reference["network"]["dim"] == 1536
    assert reference["transformer"]["window_size_t"] == 9
    assert reference["scheduler"]["denoising_timesteps"] == [1000, 750, 500, 250]


def test_experts_are_placed_and_one_network_is_refused():
    import jax
    from benchmarking import methods

    def pipeline(slug):
        config = methods.pipeline_config(
            slug, decoder="none", dtype="float32", overrides={}
        )
        return config.setup()

    experts = pipeline("fastvideo-causal-wan2.2-t2v-14b")
    assert methods.placement(experts, 0.0) is None
    placed = jax.tree.leaves(methods.placement(experts, 1.0)["transformer"])
    assert {each.memory_kind for each in placed} == {"pinned_host"}
    with pytest.raises(ValueError, match="methods of one network"):
        methods.reference_spec(experts.config)
    with pytest.raises(ValueError, match="methods of two experts, got 'self-forcing"):
        methods.placement(pipeline("self-forcing-wan2.1-t2v-1.3b"), 0.5)


def test_an_hd_map_is_timed_with_a_worker_of_its_own():
    import jax
    from benchmarking import methods

    config = methods.pipeline_config(
        "omnidreams-perf", decoder="config", dtype="float32", overrides={}
    )
    assert config.conditioner is None
    assert config.encoder.hdmap.encoder.dtype == "float32"
    assert methods.first_steady_chunk(config) == 3
    assert methods.reference_worker(config) == "reference_omnidreams"
    reference = methods.reference_spec(config)
    assert reference["network"]["model_channels"] == 2048
    assert reference["transformer"]["skip_finalize_kv_cache"]
    assert reference["vae_base_dim"] == 96
    assert methods.chunk_input(config, 0, (16, 32)).shape == (1, 1, 5, 16, 32, 3)
    assert methods.chunk_input(config, 1, (16, 32)).shape == (1, 1, 8, 16, 32, 3)
    conditions = jax.eval_shape(
        lambda key: methods.random_conditions(config, key, (16, 32)), jax.random.key(0)
    )
    assert conditions.image_embedding.shape == (1, 1, 1, 2, 4, 16)
