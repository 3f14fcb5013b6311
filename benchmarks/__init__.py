"""Benchmarks: how late, how fast, how much; `./scripts/bench NAME`. docs/benchmarks.md tells what each one measures."""
