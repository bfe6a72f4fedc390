"""Parts of `scripts/benchmark.py`: workers that run in processes of their own."""
