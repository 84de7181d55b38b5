"""What docs/smoothness_use.md shows runs as it stands, each block after those above it."""

from __future__ import annotations

import json
import math
import re
import statistics
import warnings
from pathlib import Path

import torch

PAGE = Path(__file__).parents[1] / "docs" / "smoothness_use.md"


def test_the_blocks_of_the_page_run_in_order_and_their_terms_do_something(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for block in blocks:
            exec(block, names)
    assert [str(warning.message) for warning in caught if "smoothness" in str(warning.message)] == []
    assert "survive the dtype" in capsys.readouterr().out
    assert names["smooth"].last["value"] > 0
    assert math.isfinite(names["loss"].item())
    assert names["encoder"].embeddings.word_embeddings.weight.grad is not None
    assert list(names["found"].faults()) == []
    scores = names["smooth_scores"]
    embedded = names["encoder"].embeddings(names["ids"]).detach()
    assert list(scores.measure(names["above"], embedded, names["mask"]).faults()) == []
    assert [entry["smoothness"] > 0 for entry in names["trainer"].state.log_history if "loss" in entry] == [True, True]


def test_the_page_tells_the_saved_results_of_the_figure():
    found = json.loads((PAGE.parents[1] / "benchmarks" / "results" / "boundary.json").read_text())
    plain, smooth = (100 * statistics.fmean(found[side]) for side in ("plain", "smooth"))
    points = {name: 100 * value for name, value in found["difference"].items()}
    text = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"Radius {found['radius']} and weight {found['weight']} were chosen" in text
    assert f"over {len(found['plain'])} seeds: plain {plain:.1f} %, smooth {smooth:.1f} %" in text
    assert "{value:.1f} points, 95 % interval {low:.1f} to {high:.1f}".format(**points) in text
    assert (PAGE.parent / "images" / "boundary.svg").is_file()
