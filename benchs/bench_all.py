#!/usr/bin/env python3
"""Benchmark of vector codes; see --help.

Runs from the source tree (benchs/bench_all.py) and, installed, as
python -m faiss_turboquant.bench_all.
"""

import sys

if __package__:
    from .bench_suite.cli import main
else:
    from bench_suite.cli import main

if __name__ == "__main__":
    sys.exit(main())
