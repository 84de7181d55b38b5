"""The reference for `pwim_resnet`: Wang's Table 3 on `transformers.BertModel`, as a worker of the harness.

Written as its users would: both texts of a batch stacked in one call, the cube padded to the batch's longest text and set
to 0 where there is padding, `nn.Conv2d` and `nn.BatchNorm2d` in NCHW, `torch.autocast` in bfloat16, AdamW as it comes.
`options`: `grouped` (batches of similar length, as our own batches are), `seed`, `max_length`.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, BertModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workers"))
from worker import PassClock, Report, Spec, read_rows, run_worker

Row = tuple[list[int], list[int], float]
WINDOW = 64  # batches that are sorted by length together, where they are grouped


class Block(nn.Module):
    """Table 3's residual block; the shortcut is a 1 x 1 convolution where the channels differ."""

    def __init__(self, entering: int, channels: int = 128) -> None:
        super().__init__()
        self.projection = nn.Conv2d(entering, channels, 1) if entering != channels else nn.Identity()
        self.conv1 = nn.Conv2d(entering, channels, kernel_size=3, stride=1, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.dropout1 = nn.Dropout(0.5)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, stride=1, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.dropout2 = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, C, T, T) to (B, 128, T, T)."""
        out = self.dropout1(F.relu(self.bn1(self.conv1(x))))
        out = self.dropout2(self.bn2(self.conv2(out)))
        return F.relu(out + self.projection(x))


class PwimResnet(nn.Module):
    """BertModel, the cube of cosine, L2 distance and dot product, five blocks, adaptive max pooling, two linear layers."""

    def __init__(self, checkpoint: str) -> None:
        super().__init__()
        self.bert = BertModel.from_pretrained(checkpoint, add_pooling_layer=False)
        self.blocks = nn.Sequential(Block(3), *[Block(128) for _ in range(4)])
        self.pool = nn.AdaptiveMaxPool2d((1, 1))
        self.fc1 = nn.Linear(128, 1024)
        self.fc2 = nn.Linear(1024, 1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Ids and mask (2B, T), all first texts and then all second ones, to logits (B,)."""
        states = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        grid = self.blocks(cube(*states.chunk(2), *attention_mask.chunk(2)))
        logits: Tensor = self.fc2(self.fc1(self.pool(grid).flatten(1))).squeeze(1)
        return logits


def cube(a: Tensor, b: Tensor, mask_a: Tensor, mask_b: Tensor) -> Tensor:
    """States (B, T, D) and masks (B, T) of both texts to (B, 3, T, T)."""
    dot = a @ b.transpose(1, 2)
    cosine = F.normalize(a, dim=2) @ F.normalize(b, dim=2).transpose(1, 2)
    squares = a.square().sum(dim=2)[:, :, None] + b.square().sum(dim=2)[:, None, :]
    distance = (squares - 2 * dot).clamp(min=1e-6).sqrt()
    return torch.stack([cosine, distance, dot], dim=1) * (mask_a[:, :, None] * mask_b[:, None, :])[:, None]


def tokenised(spec: Spec, tokenizer: AutoTokenizer) -> list[Row]:
    """(ids of the first text, ids of the second, label) of every row."""
    rows, cut = read_rows(spec), {"truncation": True, "max_length": spec.get("options", {}).get("max_length", 128)}
    first, second = (tokenizer([row[name] for row in rows], **cut)["input_ids"] for name in ("text_a", "text_b"))
    return list(zip(first, second, [float(row["label"]) for row in rows], strict=True))


def batches(rows: list[Row], size: int, draw: random.Random, grouped: bool) -> list[list[Row]]:
    """The rows in a new order, cut into batches; grouped: sorted by length within windows, then shuffled by batch."""
    order = draw.sample(rows, len(rows))
    if grouped:
        window = size * WINDOW
        parts = [order[start : start + window] for start in range(0, len(order), window)]
        order = [row for part in parts for row in sorted(part, key=lambda row: max(len(row[0]), len(row[1])))]
    cut = [order[start : start + size] for start in range(0, len(order), size)]
    return draw.sample(cut, len(cut)) if grouped else cut


def padded(batch: list[Row], pad_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and mask (2B, T), padded to the longest text, and labels (B,)."""
    texts = [torch.tensor(row[side]) for side in (0, 1) for row in batch]
    ids = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(text) for text in texts])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long(), torch.tensor([row[2] for row in batch])


def train(spec: Spec) -> Report:
    """Train as the spec says."""
    options, device = spec.get("options", {}), torch.device(spec.get("device", "cpu"))
    torch.manual_seed(options.get("seed", 1))
    draw, tokenizer = random.Random(options.get("seed", 1)), AutoTokenizer.from_pretrained(spec["checkpoint"])
    model, rows, clock = PwimResnet(spec["checkpoint"]).to(device).train(), tokenised(spec, tokenizer), PassClock()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-5)
    loss_of = F.mse_loss if spec["kind"] == "regression" else F.binary_cross_entropy_with_logits
    for _ in range(spec["passes"]):
        clock.begin_pass()
        for batch in batches(rows, spec["batch_size"], draw, options.get("grouped", False)):
            ids, mask, labels = (tensor.to(device) for tensor in padded(batch, tokenizer.pad_token_id))
            with torch.autocast(device.type, dtype=torch.bfloat16):
                logits = model(ids, mask)
            loss = loss_of(logits.float(), labels)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            clock.losses.append(float(loss.detach()))
            clock.end_step()
    return clock.report(len(rows))


if __name__ == "__main__":
    run_worker(train, ("data", "kind", "checkpoint", "batch_size", "passes"))
