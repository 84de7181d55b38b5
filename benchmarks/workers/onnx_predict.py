"""`onnxruntime` on the int8 file of `onnx_export.py`, texts sorted by length. `options`: `batch_size`, `threads`."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import onnxruntime
from predict_clock import Texts, timed
from transformers import AutoTokenizer
from worker import Report, Spec, run_worker


def predict(spec: Spec) -> Report:
    """Answer as the spec says."""
    options = spec.get("options", {})

    def load() -> Callable[[Texts], list[int]]:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
        session = onnxruntime.InferenceSession(spec["onnx"], settings, providers=["CPUExecutionProvider"])
        tokenizer = AutoTokenizer.from_pretrained(spec["peer_model"])

        def labels(texts: Texts) -> list[int]:
            found = np.empty(len(texts), dtype=np.int64)
            order = sorted(range(len(texts)), key=lambda number: -len("".join(texts[number])))
            size = options.get("batch_size", 32)
            for start in range(0, len(order), size):
                part = order[start : start + size]
                chosen = [texts[number] for number in part]
                batch = tokenizer(chosen, padding=True, truncation=True, max_length=128, return_tensors="np")
                found[part] = session.run(["logits"], dict(batch))[0].argmax(axis=1)
            return [int(label) for label in found]

        return labels

    return timed(spec, load)


if __name__ == "__main__":
    run_worker(predict, ("texts", "onnx", "peer_model"))
