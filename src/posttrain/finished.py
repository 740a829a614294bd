"""What a run leaves when it has ended: the model folder, whole or not at all, its metrics and its curve."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import logging
import shutil
from pathlib import Path

from transformers import TrainerControl

from posttrain.checkpoint_trainer import ARGUMENTS_FILE
from posttrain.checkpoints import MANIFEST, move_into_place, room_to_write, write_manifest
from posttrain.config import CommonConfig
from posttrain.disk import write_text
from posttrain.models import follow_umask
from posttrain.provenance import is_timing
from posttrain.provenance import write as write_provenance
from posttrain.trainer import PostTrainer

logger = logging.getLogger(__name__)


def bytes_to_write(trainer: PostTrainer) -> tuple[int, int]:
    """About what a checkpoint and the finished model take on the disk at least: an adapter alone is saved of an adapted
    model, and Adam keeps two numbers a trained parameter, of its type, where none of the smaller ones is taken."""
    arguments, parameters = trainer.args, list(trainer.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in parameters if p.requires_grad)
    model = trained if trainer.method.config.use_peft else sum(p.numel() * p.element_size() for p in parameters)
    is_adam = str(getattr(arguments.optim, "value", arguments.optim)) in ("adamw_torch", "adamw_torch_fused")
    state = 2 * trained if is_adam and not arguments.save_only_model else 0
    return (0 if arguments.save_strategy == "no" else model + state), model


def save(config: CommonConfig, trainer: PostTrainer, metrics: dict[str, float], checkpoint: str | None) -> None:
    """Write the finished model beside its folder and move it there; all processes call this.

    Args:
        config: of the run.
        trainer: that has trained.
        metrics: of the run, for its provenance and `metrics_file`.
        checkpoint: that the run went on from; None: from the start.
    """
    assert config.output_dir is not None
    folder = Path(config.output_dir)
    beside = folder / ".saving"
    trainer.args.save_on_each_node = False  # of machines with disks of their own, the first gets the finished model
    with room_to_write("the finished model", Path(trainer.args.output_dir), beside):
        if trainer.args.should_save:
            shutil.rmtree(beside, ignore_errors=True)
        # By all ranks: the pieces of sharded weights come together.
        trainer.save_model(str(beside), _internal_call=True)
        if not trainer.args.should_save:
            return
        (beside / ARGUMENTS_FILE).unlink(missing_ok=True)
        history = trainer.state.log_history
        state = dataclasses.asdict(trainer.state)
        state["best_model_checkpoint"] = None  # a path; what was logged there stands in the history
        state["stateful_callbacks"]["TrainerControl"] = TrainerControl().state()  # not of the last checkpoint
        state["log_history"] = [{k: v for k, v in line.items() if not is_timing(k)} for line in history]
        text = json.dumps(state, indent=2, sort_keys=True) + "\n"
        (beside / "trainer_state.json").write_text(text, encoding="utf-8")
        counts = {k.removeprefix("data/"): int(v) for k, v in metrics.items() if k.startswith("data/")}
        trainer.write_card(beside, counts, folder)
        follow_umask(beside)
        write_manifest(beside)
        names = sorted(path.name for path in beside.iterdir() if path.name != MANIFEST)
        assert trainer.provenance is not None  # as everywhere, the first process is the one that saves
        about = trainer.provenance.finished(beside, trainer.state.global_step, metrics, checkpoint)
        write_provenance(folder, beside, config, about)
        move_into_place(beside, folder)
        logger.info("The model is in %s.", folder)
        if config.metrics_file:
            write_text(Path(config.metrics_file), json.dumps(metrics, indent=2, sort_keys=True) + "\n")
        if config.plots_file:
            write_text(Path(config.plots_file), _curve(history))
    if trainer.args.push_to_hub:
        trainer.push_model(folder, names)


def _curve(history: list[dict[str, float]]) -> str:
    """As CSV, one row a logged step, training and evaluation of a step side by side; timings left out."""
    rows: dict[int, dict[str, float]] = {}
    for line in history:
        if "loss" in line or "eval_loss" in line:
            rows.setdefault(int(line["step"]), {}).update({k: v for k, v in line.items() if not is_timing(k)})
    columns = ["step", *sorted({name for row in rows.values() for name in row} - {"step"})]
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[step] for step in sorted(rows))
    return file.getvalue()
