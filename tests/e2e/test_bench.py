"""`python -m bench` runs to its end and says what it measured; how fast that was is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REQUIRED = {
    "apply_vs_copy",
    "fold_per_second",
    "end_to_end_vs_naive",
    "end_to_end_per_second",
    "reconcile_vs_without",
    "admit_vs_ping",
    "admit_concurrent_per_second",
    "redis_us_per_record",
    "redis_us_per_record_three_limits",
    "burn_of_1000_grants_ms",
    "cold_load_ms",
    "cold_load_10k_ms",
}


def run_bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_bench_prints_one_object_of_numbers():
    ended = run_bench("--smoke", "--json")

    assert ended.returncode == 0, ended.stderr
    numbers = json.loads(ended.stdout)
    assert set(numbers) >= REQUIRED
    assert all(type(number) is float and number > 0 for number in numbers.values())


def test_an_unknown_option_is_a_usage_error_that_names_it():
    ended = run_bench("--slow")

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert "--slow" in ended.stderr
