import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fdjax import testing
from fdjax.engine.diffusion import denoise, sample
from fdjax.schedulers import UniPCSchedulerConfig
from tests.golden import fill_input

T2V = UniPCSchedulerConfig(num_inference_steps=50, shift=8.0)
I2V = UniPCSchedulerConfig(num_inference_steps=40, shift=3.0)
TI2V = UniPCSchedulerConfig(num_inference_steps=40, shift=5.0)
TIMESTEPS = {
    T2V: "999 997 994 991 989 986 983 979 976 973 969 965 961 957 953 948 944 939 934 "
    "928 922 916 910 903 896 888 880 871 862 852 841 830 817 804 789 773 756 737 716 "
    "692 666 636 603 565 521 470 409 337 249 140",
    I2V: "999 991 982 973 963 954 944 933 922 911 899 887 874 861 847 832 817 801 "
    "785 767 749 730 710 688 666 642 617 590 562 531 499 465 428 388 345 299 249 195 "
    "136 71",
    TI2V: "999 994 989 983 978 972 965 959 952 944 937 929 920 911 902 892 882 870 859 "
    "846 833 818 803 786 768 749 728 706 681 654 624 591 555 514 468 416 356 288 208 "
    "113",
    UniPCSchedulerConfig(num_inference_steps=35, shift=5.0): "999 993 987 981 974 967 "
    "960 952 943 935 925 915 905 894 882 869 855 840 824 807 789 768 746 722 695 666 "
    "633 596 555 508 454 391 318 232 128",
    UniPCSchedulerConfig(num_inference_steps=4, use_kerras_sigma=True): "995 978 877 "
    "360 9",
}
# config, step, predictor (a, b0, bp), corrector (a, c0, cd, ct): wan-family fact sheet,
# section 4.3.
COEFFICIENTS = [
    (
        T2V,
        1,
        "0.9973541 0.002645826 -0.0002977827",
        "0.9974533 0.002546748 0 0.001273374",
    ),
    (
        T2V,
        2,
        "0.9972491 0.002750878 -0.0008343725",
        "0.9973541 0.002645826 -1.809501e-05 0.001393389",
    ),
    (
        T2V,
        25,
        "0.9908186 0.009181366 -0.004591016",
        "0.9914463 0.008553703 -0.0007094066 0.00362222",
    ),
    (
        T2V,
        48,
        "0.5613496 0.4386503 -0.3670425",
        "0.7395264 0.2604736 -0.03461478 0.1143744",
    ),
    (T2V, 49, "0 1 0", "0.5613496 0.4386503 -0.07594215 0.1998177"),
    (
        I2V,
        1,
        "0.9911525 0.008847527 -0.0009429566",
        "0.9915198 0.008480218 0 0.004240109",
    ),
    (
        I2V,
        2,
        "0.9907604 0.009239568 -0.002809883",
        "0.9911525 0.008847527 -5.47818e-05 0.004678473",
    ),
    (I2V, 39, "0 1 0", "0.5237868 0.4762132 -0.08180317 0.217245"),
    (
        TI2V,
        2,
        "0.9943964 0.005603533 -0.001704121",
        "0.9946539 0.00534611 -3.310192e-05 0.002826964",
    ),
    (TI2V, 39, "0 1 0", "0.5454132 0.4545868 -0.07808822 0.2073792"),
]


def predict_flow(x, timestep):
    return 0.3 * x + 0.001 * timestep


def bent_flow(x, timestep):
    """A flow with curvature, so that the order of a solver shows."""
    return jnp.sin(x) + (timestep / 1000) ** 2


@pytest.mark.parametrize("config", TIMESTEPS, ids=lambda config: config.shift)
def test_published_timesteps(config):
    scheduler = config.setup()
    expected = [int(number) for number in TIMESTEPS[config].split()]
    np.testing.assert_array_equal(scheduler.steps.timestep, expected)
    assert scheduler.num_draws == 1


def test_published_sigmas():
    sigma = T2V.setup().steps.sigma
    expected = [0.9998749, 0.9973285, 0.8886912, 0.2498046, 0.1402277]
    np.testing.assert_allclose(sigma[[0, 1, 25, 48, 49]], expected, rtol=5e-7)
    sigma = I2V.setup().steps.sigma
    np.testing.assert_allclose(sigma[[0, 39]], [0.9996665, 0.07136054], rtol=5e-7)
    sigma = TI2V.setup().steps.sigma
    np.testing.assert_allclose(sigma[[0, 39]], [0.9997998, 0.113533], rtol=5e-7)


@pytest.mark.parametrize(("config", "index", "predictor", "corrector"), COEFFICIENTS)
def test_published_coefficients(config, index, predictor, corrector):
    steps = config.setup().steps
    fields = (
        steps.predict_sample,
        steps.predict_current,
        steps.predict_previous,
        steps.correct_last,
        steps.correct_previous,
        steps.correct_older,
        steps.correct_current,
    )
    expected = np.float64([*predictor.split(), *corrector.split()])
    actual = [field[index] for field in fields]
    np.testing.assert_allclose(actual, expected, rtol=5e-7, atol=1e-9)  # 7 digits


def test_the_first_step_predicts_and_corrects_nothing():
    steps = T2V.setup().steps
    np.testing.assert_allclose(steps.predict_sample[0], 0.9974533, rtol=1e-7)
    np.testing.assert_allclose(steps.predict_current[0], 0.002546748, rtol=5e-7)
    assert steps.predict_previous[0] == 0
    corrector = steps.correct_last, steps.correct_previous
    corrector += steps.correct_older, steps.correct_current
    assert [field[0] for field in corrector] == [1, 0, 0, 0]


@pytest.mark.isa
@pytest.mark.parametrize(
    ("num_steps", "shift", "expected"),
    [
        (50, 8.0, [-1.0389023, -1.1282423, -1.6007286, -1.2738998]),
        (40, 3.0, [-1.0338153, -1.1232047, -1.5959594, -1.2689452]),
        (40, 5.0, [-1.0361803, -1.1255457, -1.5981752, -1.2712481]),
        (2, 5.0, [-1.4193183, -1.5052878, -1.9599538, -1.6454523]),
        (3, 5.0, [-1.3170265, -1.4038967, -1.8633270, -1.5455298]),
    ],
)
def test_golden_samples(num_steps, shift, expected):
    """Wan-family fact sheet, section 14.5."""
    config = UniPCSchedulerConfig(num_inference_steps=num_steps, shift=shift)
    noise = jnp.asarray(fill_input("noise", (4,)))
    clean = sample(config.setup(), noise, predict_flow)
    # Each step subtracts close numbers and hands its rounding to the next.
    testing.assert_close(clean, expected, testing.tolerance(np.float32, num_steps))


def python_loop(scheduler, noise, flow):
    """Corrector and predictor as two statements, in float64."""
    steps = [np.float64(field) for field in scheduler.steps]
    timesteps, _, sigmas, a_corr, c0, cd, ct, a_pred, b0, bp = steps
    sample, last, previous, older = np.float64(noise), None, None, None
    for i, (timestep, sigma) in enumerate(zip(timesteps, sigmas, strict=True)):
        current = sample - sigma * np.float64(flow(sample, timestep))
        if i > 0:
            sample = a_corr[i] * last + c0[i] * previous + ct[i] * (current - previous)
        if i > 1:
            sample = sample + cd[i] * (older - previous)
        last = sample
        sample = a_pred[i] * sample + b0[i] * current
        if i > 0:
            sample = sample + bp[i] * (previous - current)
        older, previous = previous, current
    return sample


@pytest.mark.parametrize("solver_order", [1, 2])
@pytest.mark.parametrize("num_steps", [2, 3, 10])
@pytest.mark.parametrize("karras", [False, True])
def test_scan_equals_a_python_loop(solver_order, num_steps, karras):
    config = UniPCSchedulerConfig(
        num_inference_steps=num_steps,
        solver_order=solver_order,
        use_kerras_sigma=karras,
    )
    scheduler = config.setup()
    assert len(scheduler.steps.timestep) == num_steps + karras
    noise = jnp.asarray(fill_input("x", (2, 3)))
    actual = jax.jit(lambda noise: sample(scheduler, noise, bent_flow))(noise)
    expected = python_loop(scheduler, noise, bent_flow)
    np.testing.assert_allclose(actual, expected, atol=5e-6)


def test_the_second_order_pays():
    """Closer than order 1 to the solution that 500 steps find."""

    def solve(num_steps, order):
        config = UniPCSchedulerConfig(
            num_inference_steps=num_steps, solver_order=order, shift=1.0
        )
        return sample(config.setup(), jnp.linspace(-2, 2, 9), bent_flow)

    exact = solve(500, 2)
    errors = {
        (steps, order): np.abs(solve(steps, order) - exact).max()
        for steps in (5, 20)
        for order in (1, 2)
    }
    assert errors[5, 2] < 0.4 * errors[5, 1]
    assert errors[20, 2] < 0.4 * errors[20, 1]
    assert errors[20, 2] < 0.2 * errors[5, 2]


def test_scan_threads_the_carry():
    scheduler = UniPCSchedulerConfig(num_inference_steps=5).setup()

    def count(carry, x, timestep):
        return carry.at[0].add(1).at[1].set(timestep), jnp.zeros_like(x)

    noise = jnp.arange(3.0)
    carry, clean = denoise(scheduler, jnp.zeros(2), noise, jnp.zeros((0, 3)), count)
    np.testing.assert_array_equal(carry, [5, scheduler.steps.timestep[-1]])
    np.testing.assert_allclose(clean, noise, atol=1e-6)


def test_add_noise_snaps_to_the_visited_timesteps():
    scheduler = UniPCSchedulerConfig(num_inference_steps=35, shift=5.0).setup()
    clean, noise = (jnp.asarray(fill_input(key, (4,))) for key in ("noise", "eps1"))
    for timestep, index, sigma in (
        (128, 34, 0.12809),
        (0, 34, 0.12809),
        (180.9, 33, None),
    ):
        sigma_found = scheduler.steps.sigma[index]
        if sigma is not None:
            np.testing.assert_allclose(sigma_found, sigma, atol=1e-5)
        testing.assert_close(
            jax.jit(scheduler.add_noise)(clean, timestep, noise),
            (1 - sigma_found) * clean + sigma_found * noise,
            testing.tolerance(np.float32, 1),
        )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_inference_steps": 1}, r"num_inference_steps must be >= 2, .* got 1"),
        ({"num_inference_steps": 0}, r"num_inference_steps must be >= 1, got 0"),
        ({"solver_order": 3}, r"solver_order must be 1 or 2, got 3"),
        ({"shift": 0.0}, r"shift must be > 0"),
        ({"shift": 1e6}, r"must decrease from below 1.*shift=1000000\.0"),
    ],
)
def test_configs_that_cannot_work_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        UniPCSchedulerConfig(**fields)
