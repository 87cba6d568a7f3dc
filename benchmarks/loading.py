"""Loading and compressing one data set, measured in a process of its own: python -m benchmarks.loading '{"data": "FILE.npz"}'"""

import json
import sys
import time

from benchmarks.session import peak_memory, serve
from cql.dataset import OfflineDataset


def load_and_compress(data: str) -> dict:
    """Seconds, and peak memory in bytes: before (Python and its libraries), after loading, after compressing."""
    before, start = peak_memory(), time.perf_counter()
    dataset = OfflineDataset.load(data)
    loaded, memory_loaded = time.perf_counter(), peak_memory()
    compressed = dataset.compress()
    return {"transitions": len(dataset), "distinct": len(compressed), "load_seconds": loaded - start,
            "compress_seconds": time.perf_counter() - loaded, "memory_before": before, "memory_loaded": memory_loaded,
            "memory": peak_memory()}


if __name__ == "__main__":
    serve(load_and_compress(**json.loads(sys.argv[1])), lambda seconds: {})
