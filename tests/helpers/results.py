"""The rows that benchmarks have measured and that are committed."""

import json

from benchmarks import harness

RESULTS = {path.stem: [json.loads(line) for line in path.open()] for path in harness.RESULTS.glob("*.jsonl")}
