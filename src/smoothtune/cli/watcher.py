"""A run as it goes, shown on stderr: a bar and losses, a line for each epoch. Knows nothing of how a run is begun."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from smoothtune.cli.probe_lines import loss_text, probe_lines
from smoothtune.cli.stage_lines import change_text, changed_tasks, percent

if TYPE_CHECKING:
    from smoothtune.workflow.events import Event, Resumed

_SAY_EVERY = 30.0  # seconds of training between lines where no bar can be drawn
_DRAW_EVERY = 0.1  # seconds between changes of the bar: a step may take less than writing it out


class Watcher:
    """Shows a run on stderr: findings, then a bar and losses while training, a line per epoch."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TimeRemainingColumn

        from smoothtune.cli.progress_column import PlainColumn
        from smoothtune.cli.tables import err

        self._console = err()
        self._progress = Progress(
            PlainColumn("{task.description}"),
            BarColumn(bar_width=24),
            PlainColumn("{task.completed}/{task.total} {task.fields[unit]}"),
            TimeRemainingColumn(compact=True),
            PlainColumn("{task.fields[losses]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._bar: Any = None
        self._losses: dict[str, float] = {}
        self._said = 0.0
        self._drawn = 0.0
        self._explained: set[str] = set()
        self._value = "best"  # which state a stage leaves: its best, or its last
        self._partial = False  # whether the stage has fewer tasks than the experiment

    def close(self) -> None:
        """Take the bar away, whatever ended the run: the terminal's cursor comes back with it."""
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        from smoothtune.training.loop import Pieces, StepReport
        from smoothtune.training.notices import Notice
        from smoothtune.training.stage_events import StageBegin, StageEnd, StageEpoch
        from smoothtune.workflow.events import Interrupting, Resumed, RunBegin, RunEnd
        from smoothtune.workflow.frozen import Encoding, FrozenStates
        from smoothtune.workflow.recipe import Choosing, RecipeChosen

        if isinstance(event, StepReport):
            self._step(event)
        elif isinstance(event, Choosing):
            self._choosing(event)
        elif isinstance(event, RecipeChosen):
            self._take_bar_away()
            for sentence in event.sentences:
                self._console.print(f"recipe: {sentence}", soft_wrap=True)
        elif isinstance(event, RunBegin):
            from smoothtune.cli.check import print_warnings

            self._console.print(f"run folder: {event.folder}", soft_wrap=True)
            print_warnings(event.check, self._console)
            for note in event.notes:
                self._console.print(note, soft_wrap=True)
        elif isinstance(event, Resumed):
            self._resumed(event)
        elif isinstance(event, Encoding):
            self._encoding(event)
        elif isinstance(event, FrozenStates):
            self._frozen(event)
        elif isinstance(event, StageBegin):
            self._begin(event)
        elif isinstance(event, Pieces):
            self._console.print(
                f"warning: out of memory at step {event.step:,}: from here on a batch goes through in {event.pieces} pieces "
                f"of at most {event.rows} rows, their gradients added up",
                soft_wrap=True,
            )
        elif isinstance(event, StageEpoch):
            self._epoch(event)
        elif isinstance(event, Notice):
            self._console.print(f"warning: {event}", soft_wrap=True)
        elif isinstance(event, StageEnd):
            self._take_bar_away()
            metric = event.metric
            if metric in ("score", "plain_mean"):
                metric = self._of_tasks(metric, event.after)
            self._console.print(
                f"stage {event.stage} ended: {event.reason}; {self._value} {metric} {event.best:.4f}", soft_wrap=True
            )
            self._console.print(f"  {change_text(event, self._of_tasks('score', event.after))}", soft_wrap=True)
        elif isinstance(event, Interrupting):
            kept = ", with a checkpoint" if event.checkpoint else ""
            again = "; once more ends it at once" if event.at_once else ""
            self._console.print(f"Ctrl-C: the run ends after this step or evaluation{kept}{again}", soft_wrap=True)
        elif isinstance(event, RunEnd):
            self._explain(event.undefined)

    def _begin(self, event: Any) -> None:
        share = percent(event.trained / event.parameters)
        tasks = ", ".join(event.tasks)
        self._console.print(
            f"stage {event.stage}: {tasks}; {event.steps:,} steps in {event.dtype}; "
            f"trains {event.trained:,} of {event.parameters:,} parameters ({share})",
            soft_wrap=True,
        )
        parts = ", ".join(f"{part} {count:,}" for part, count in event.trains.items())
        rest = "; all else is frozen" if event.trained < event.parameters else ""
        self._console.print(f"  {parts}{rest}", soft_wrap=True)
        for line in changed_tasks(event.others):
            self._console.print(f"  {line}", soft_wrap=True)
        self._partial = bool(event.others)
        self._value = "last" if event.keeps_last else "best"
        self._losses, self._said, self._drawn = {}, 0.0, 0.0
        self._progress.start()
        self._bar = self._progress.add_task(
            event.stage, total=event.steps, completed=event.done, losses="", unit="steps"
        )

    def _resumed(self, event: Resumed) -> None:
        for damage in event.damaged:
            self._console.print(f"warning: {damage}", soft_wrap=True)
        if event.checkpoint is None:
            self._console.print("there is no checkpoint: the run starts over", soft_wrap=True)
            return
        self._console.print(
            f"goes on from {event.checkpoint}: stage {event.stage}, step {event.step:,}", soft_wrap=True
        )
        for difference in event.differs:
            self._console.print(f"no longer exact: {difference}", soft_wrap=True)

    def _take_bar_away(self) -> None:
        self._progress.stop()
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None

    def _choosing(self, event: Any) -> None:
        """The bar of a recipe that tries fine-tuning; before that, one line for each probe."""
        if not event.total:
            self._console.print(f"recipe: {event.what} ...", soft_wrap=True)
            return
        if self._bar is None:
            self._console.print(f"recipe: {event.what} in cross-validation, {event.total:,} steps ...", soft_wrap=True)
            self._progress.start()
            self._bar = self._progress.add_task("recipe", total=event.total, losses="cross-validation", unit="steps")
        self._progress.update(self._bar, completed=event.done)

    def _encoding(self, event: Any) -> None:
        """The bar of a frozen encoder that reads its texts."""
        if self._bar is None:
            self._progress.start()
            self._bar = self._progress.add_task(event.stage, total=event.texts, losses="encoding", unit="texts")
        self._progress.update(self._bar, completed=event.done)

    def _frozen(self, event: Any) -> None:
        self._take_bar_away()
        rest = f"stage {event.stage}: nothing in the encoder trains, so there is no dropout in it"
        if event.short:
            self._console.print(f"{rest}; each step computes its states: {event.obstacle}", soft_wrap=True)
            return
        if event.obstacle is not None:
            self._console.print(
                f"warning: {rest}; its states cannot be kept, so each step computes them: {event.obstacle}",
                soft_wrap=True,
            )
            return
        encoded = f"{event.encoded:,} encoded in {event.seconds:.1f} s" if event.encoded else "all were there already"
        self._console.print(
            f"{rest}; its states of {event.texts:,} texts are kept, {event.bytes / 1e6:,.1f} MB in the cache: {encoded}",
            soft_wrap=True,
        )

    def _step(self, event: Any) -> None:
        for task, parts in event.losses.items():
            before = self._losses.get(task, parts["unweighted"])
            self._losses[task] = 0.95 * before + 0.05 * parts["unweighted"]
        next_time = self._drawn + _DRAW_EVERY if self._console.is_terminal else self._said + _SAY_EVERY
        if event.seconds < next_time and event.step < event.of_steps:
            return
        self._drawn = event.seconds
        losses = "  ".join(f"{task} {loss:.3f}" for task, loss in self._losses.items())
        self._progress.update(self._bar, completed=event.step, losses=losses)
        if not self._console.is_terminal and event.seconds >= self._said + _SAY_EVERY:
            self._said = event.seconds
            self._console.print(f"step {event.step:,} of {event.of_steps:,}: loss {losses}", soft_wrap=True)

    def _epoch(self, event: Any) -> None:
        report, scores = event.report, event.report.dev
        losses = "  ".join(loss_text(task, parts) for task, parts in report.losses.items())
        dev = "  ".join(f"{task} {value:.3f}" for task, value in scores.main.items())
        mark = " (best)" if event.best else ""
        trained = f"epoch {report.epoch + 1}, {report.train_seconds:.0f} s: loss {losses} |"
        begun = trained if report.step else "before the first step:"
        score = self._of_tasks("score", scores)
        self._console.print(f"{begun} dev {dev} | {score} {scores.score:.4f}{mark}", soft_wrap=True)
        self._explain(scores.undefined)
        rows = [
            f"{task} {seen.once:,} / {seen.repeated:,} / {seen.unseen:,}"
            for task, seen in report.coverage.items()
            if seen.repeated or seen.unseen
        ]
        if rows:
            text = ", ".join(rows)
            self._console.print(f"  rows seen once / repeatedly / not in this epoch: {text}", soft_wrap=True)
        if report.skipped:
            self._console.print(f"  {report.skipped} batches skipped so far: their loss or gradient was not finite")
        for task, (before, now) in event.below.items():
            effect = f"{task} keeps its earlier state" if event.each_task else f"not the best: {task}"
            self._console.print(f"  {effect}: below what it began with, {before:.3f} -> {now:.3f}", soft_wrap=True)
        for line in probe_lines(event.probe):
            self._console.print(f"  {line}", soft_wrap=True)
        for task in event.finished:
            self._console.print(f"  {task} finished: its best output is kept")

    def _of_tasks(self, mean: str, scores: Any) -> str:
        """The name of a mean over the stage's tasks, with these where the experiment has more, or one has no score."""
        counted = [task for task in scores.main if task not in scores.scoreless]
        return f"{mean} of {', '.join(counted)}" if counted and (self._partial or scores.scoreless) else mean

    def _explain(self, undefined: Any) -> None:
        """Say once a run why a metric is not a number."""
        for name, why in undefined.items():
            if name not in self._explained:
                self._explained.add(name)
                self._console.print(f"  {name} is nan: {why}", soft_wrap=True)
