"""`SmoothTrainer`: a `transformers.Trainer` with adversarial smoothness. Knows models by `base_model.embeddings` and logits.

The perturbation is added to what the embeddings module returns, by a hook that lives for one pass: position, type,
LayerNorm and dropout happen once, as in the clean pass. Embeddings are never fed back in as `inputs_embeds`.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer_utils import get_last_checkpoint

from smoothtune.integrations.second_pass import SecondPass, logits_in
from smoothtune.integrations.transformers_settings import smoothness_for
from smoothtune.runtime.generators import Generators
from smoothtune.smoothness import Clean, Measured, Smoothness

_MEMORY = "smoothness.json"


class SmoothTrainer(Trainer):  # type: ignore[misc]
    """`Trainer` with one more argument: `smoothness`, a preset's name, a `Smoothness`, or None for the plain Trainer.

    For encoders with a sequence-classification head (BERT, RoBERTa, DeBERTa, DistilBERT, ELECTRA and their kin), bare or
    in a `PeftModel`. A name is for classification, and for one logit with a binary loss; a model with one regression
    output needs its label range: `Smoothness("regression", range=(0, 5))`. `weight` is relative to the loss of a batch,
    whatever gradient accumulation does to it. Logs hold `smoothness`, the mean term before its weight, beside `loss`, which
    contains the weighted term; the first one also holds what lies in it on the first batch (`Measured`), and what is wrong
    with that is a warning. Evaluation is the Trainer's own. By operations a training step costs 8/3 of the Trainer's.

    Raises `UsageError` for models and arguments with which the term would not be what it says.
    """

    def __init__(self, *args: Any, smoothness: str | Smoothness | None = "exact", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.smoothness = None if smoothness is None else smoothness_for(self.model, self.args, smoothness)
        self._terms: list[float] = []
        self._per_item: bool | None = None
        self._measured: dict[str, float] | None = None

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The Trainer's loss and, in training, the weighted term."""
        if self.smoothness is None or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = dict(inputs)
        loss, outputs, clean = self._clean_pass(model, inputs, num_items_in_batch)
        mask = given.get("attention_mask")
        if self._measured is None:
            self._measured = self._told(self.smoothness.parts(clean, mask))
        term = self.smoothness.term(clean, mask, progress=self._progress())
        if self.smoothness.last:
            self._terms.append(self.smoothness.last["value"])
        share = self._share(model, given, num_items_in_batch, loss, clean.generators)
        loss = loss + share * term.to(loss.dtype)
        return (loss, outputs) if return_outputs else loss

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """See `Trainer.train`; a checkpoint's memory of the term is taken up again."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        if self.smoothness is not None and folder and (memory := Path(folder, _MEMORY)).is_file():
            self.smoothness.load_state_dict(json.loads(memory.read_text(encoding="utf-8")))
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """See `Trainer.log`; with `smoothness`, the mean since the last training log."""
        if "loss" in logs and self._terms:
            logs["smoothness"] = math.fsum(self._terms) / len(self._terms)
            self._terms.clear()
        if "loss" in logs and self._measured:
            logs |= self._measured
            self._measured = {}
        super().log(logs, start_time)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self.smoothness is not None and self.is_world_process_zero():
            Path(output_dir, _MEMORY).write_text(json.dumps(self.smoothness.state_dict()), encoding="utf-8")

    def _clean_pass(
        self, model: nn.Module, inputs: dict[str, Any], items: Tensor | int | None
    ) -> tuple[Tensor, Any, Clean]:
        """The Trainer's loss and the model's outputs, and what the term needs to know of the pass."""
        base = self.accelerator.unwrap_model(model)
        again = SecondPass(base, {name: part for name, part in inputs.items() if name not in self.label_names})
        generators = Generators.now(next(base.parameters()).device)
        with again.watching():
            loss, outputs = super().compute_loss(model, inputs, True, items)
        # `inputs` has its labels still if the model computed the loss, which then comes before the logits
        logits = logits_in(outputs, after=int("labels" in inputs))
        states, dtype = again.states()
        return loss, outputs, Clean(again, states, logits, generators, dtype)

    def _told(self, measured: Measured) -> dict[str, float]:
        """What the first training log holds; what is wrong is said at once."""
        assert self.smoothness is not None
        for fault in measured.faults():
            warnings.warn(f"smoothness: {fault}", stacklevel=2)
        numbers = {name: value for name, value in asdict(measured).items() if isinstance(value, float)}
        return {f"smoothness_{name}": value for name, value in numbers.items()}

    def _progress(self) -> float:
        return self.state.global_step / self.state.max_steps if self.state.max_steps > 0 else 0.0

    def _share(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        items: Tensor | int | None,
        loss: Tensor,
        generators: Generators,
    ) -> Tensor | float:
        """What the Trainer's loss of this batch is of the batch's mean loss: the term, a mean too, has to be as much.

        Losses that take the number of items of all accumulated batches are divided by it; the heads of many models ignore
        it, and then nothing is divided. The loss itself is asked, once, with twice the number.
        """
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        if items is None or self.current_gradient_accumulation_steps * processes == 1:
            return 1.0
        if self._per_item is None:
            with torch.no_grad(), generators.again():
                halved = super().compute_loss(model, dict(inputs), False, 2 * items)
            self._per_item = bool(torch.isclose(2 * halved, loss.detach(), rtol=1e-3))
        return processes * (inputs["labels"].ne(-100).sum() / items if self._per_item else 1.0)
