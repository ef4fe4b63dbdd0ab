"""Compilation for a platform: options that the compiler rejects are left out, and results agree without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from zoo import models
from zoo.distributed import compile
from zoo.models import operations


@pytest.fixture
def options(monkeypatch):
    """Other compiler options for the CPU than the real ones."""

    def replace(*candidates):
        monkeypatch.setattr(compile, "_CPU_OPTIONS", candidates)
        compile.compiler_options.cache_clear()

    yield replace
    compile.compiler_options.cache_clear()


def test_this_version_of_jax_has_both_options():
    """Both exist in the version of jax that the tests use; without them training on a CPU is slow."""
    assert set(compile.compiler_options("cpu")) == {"xla_cpu_experimental_ynn_fusion_type", "xla_disable_hlo_passes"}
    assert compile.compiler_options("gpu") is None


def test_micro_batches_are_unrolled_only_if_barriers_are_kept(options):
    assert compile.max_unrolled_microbatches() == 8
    options(compile._CPU_OPTIONS[0])
    assert compile.max_unrolled_microbatches() == 0
    options()
    assert compile.compiler_options() is None and compile.max_unrolled_microbatches() == 0


def test_barriers_survive_compilation():
    def scrap(x):
        return lax.optimization_barrier(x * 2) + 1

    assert "opt-barrier" in jax.jit(scrap, compiler_options=compile.compiler_options()).lower(1.0).compile().as_text()


def test_results_agree_without_the_options(options):
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=size), jnp.float32) for size in ((2, 6, 6, 3), (3, 3, 3, 4)))

    def gradients(x, kernel):
        def total(x, kernel):
            x = operations.relu(operations.conv2d(x, kernel, (1, 1), ((1, 1), (1, 1))))
            x = operations.batch_norm_of_batch(x, jnp.ones(4), jnp.zeros(4), 1e-3)[0]
            return jnp.square(operations.max_pool(x, 2, 1)).sum()

        return jax.grad(total, argnums=(0, 1))(x, kernel)

    plain = jax.jit(lambda *args: gradients(*args))(x, kernel)
    real = compile._CPU_OPTIONS
    refused = {"xla_no_such_option": True}
    for candidates in (real, (refused, *real[:1]), (*real[1:], refused), (refused,)):
        options(*candidates)
        expected = {name for option in candidates for name in option} - set(refused)
        assert set(compile.compiler_options() or {}) == expected
        tuned = compile.jit_for_platform(gradients)(x, kernel)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), tuned, plain)


def test_an_option_that_gives_wrong_values_is_left_out(options, monkeypatch):
    real_jit = jax.jit

    def broken(function, *, compiler_options=None, **kwargs):
        return real_jit(lambda *args: function(*args) + 1e-3 if compiler_options else function(*args), **kwargs)

    options(*compile._CPU_OPTIONS)
    monkeypatch.setattr(jax, "jit", broken)
    assert compile.compiler_options() is None


def test_the_formulation_is_set_only_within_a_compiled_function():
    seen = []

    def function(x):
        seen.append(operations.current_formulation())
        return x

    compile.jit_for_platform(function)(1.0)
    jax.jit(lambda x: function(x))(1.0)
    assert seen == ["cpu", None]


def test_the_plain_formulation_is_the_default():
    """It can be differentiated in forward mode; the one for CPU, with custom_vjp, cannot."""
    model = models.create("resnet20", blocks=(1,), width=4, num_classes=3)
    variables = models.init(model, 0, (8, 8, 3))
    images = jnp.ones((2, 8, 8, 3))

    def logits(images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0][0]

    _, tangent = jax.jvp(logits, (images,), (images,))
    assert tangent.shape == (2, 3)
    with operations.formulation("cpu"), pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(lambda images: logits(images), (images,), (images,))


def test_a_formulation_set_outside_wins():
    """Compiling for a platform within `formulation` keeps that formulation."""

    def function(x):
        return operations.relu(operations.max_pool(x, 2, 2)).sum()

    x = jnp.arange(16.0).reshape(1, 4, 4, 1)
    with operations.formulation("plain"):
        plain = compile.jit_for_platform(function)
    value, tangent = jax.jvp(plain, (x,), (jnp.ones_like(x),))
    assert (value, tangent) == (5 + 7 + 13 + 15, 4)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(compile.jit_for_platform(function), (x,), (jnp.ones_like(x),))
