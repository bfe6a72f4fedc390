"""Settings of the whole test run; they must stand before jax is imported."""

import os

# Compiling is most of the suite's time and LLVM's optimisation most of compiling:
# 2.6 times less processor time for the pipeline tests (jax 0.10.2, 2 cores).
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
