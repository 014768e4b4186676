"""The files of a checkpoint, made from a snapshot: weights and optimizer state as safetensors in the public layout."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
from google.protobuf.json_format import MessageToDict
from numpy.typing import NDArray
from safetensors.numpy import save

from coordinator import limits
from coordinator.snapshots import Snapshot
from coordinator.standing import Standing
from lockstep.contract.errors import InternalError
from lockstep.contract.manifest import MODEL_FILE, OPTIMIZER_FILE, FileRecord, Manifest
from lockstep.contract.weights import weights_sha256
from lockstep.internal.v1 import agent_service_pb2 as agent
from worker.data.columns import Columns, open_columns
from worker.data.standardize import fit_standardize
from worker.nn.shapes import parameter_layout
from worker.randomness import validation_split
from worker.specs import architecture, optimizer_record
from worker.weights_file import tensors_from_flat

# Classes that a sentence names.
NAMED = 10


@final
class ModelFiles:
    """Knows one job's tensors and what its manifests say about them."""

    def __init__(self, order: agent.RunOrder, files_folder: Path) -> None:
        self._order = order
        self._folder = files_folder / "datasets" / order.dataset_digest
        self._dataset = _read_dataset(self._folder / "dataset.json")
        self.input_shape = tuple(int(size) for size in self._dataset["input_shape"])
        target = self._dataset["target"]
        self.positions = "positions" in target.get("classes", {})
        self._one_label_per_row = "classes" in target and not self.positions
        self._layout = parameter_layout(architecture(order.spec.model, self.input_shape))
        self._state_names = optimizer_record(order.spec.optimizer).state_names
        self._preprocessing: dict[str, Any] | None = None

    @property
    def vector_size(self) -> int:
        """Floats of a flat vector."""
        return self._layout.size

    @property
    def vector_names(self) -> list[str]:
        """The flat vectors of a snapshot."""
        return ["parameters", *self._state_names]

    def tensors(self, snapshot: Snapshot) -> tuple[dict[str, bytes], str]:
        """The files by name, and weights_sha256."""
        weights = tensors_from_flat(self._layout, snapshot.parameters)
        state = {
            f"{name}/{tensor}": values
            for name in self._state_names
            for tensor, values in tensors_from_flat(self._layout, snapshot.vectors[name]).items()
        }
        return {MODEL_FILE: save(weights), OPTIMIZER_FILE: save(state)}, weights_sha256(weights.items())

    def manifest(self, files: dict[str, FileRecord], at: Standing, fingerprint: str, sha256: str) -> Manifest:
        """The manifest of the step where the run stands."""
        order, evaluation = self._order, at.evaluation_here
        return Manifest(
            job_id=order.job_id,
            run_number=order.run_number,
            step=at.step,
            epoch=at.epoch,
            arithmetic_digest=order.arithmetic_digest,
            arithmetic_version=order.arithmetic_version,
            dataset_digest=order.dataset_digest,
            fingerprint=fingerprint,
            weights_sha256=sha256,
            files=files,
            spec=MessageToDict(order.spec, preserving_proto_field_name=True),
            input_shape=list(self.input_shape),
            create_time=datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            applied_rows=at.rows.up_to(at.step),
            preprocessing=self._fitted(),
            loss=at.loss,
            validation_loss=evaluation.loss if evaluation else None,
            validation_accuracy=evaluation.accuracy if evaluation else None,
            validation_metrics=evaluation.metrics if evaluation else {},
            validation_classes=evaluation.classes if evaluation else {},
            **at.controller.recorded(),
            class_names=[str(name) for name in self._dataset["target"].get("classes", {}).get("names", [])],
            input_names=[str(name) for name in self._dataset.get("input_names", [])],
        )

    def _fitted(self) -> dict[str, Any]:
        """What preprocessing was fitted to, as the workers fit it: computed once, at the first checkpoint."""
        if self._preprocessing is None:
            self._preprocessing = {}
            spec = self._order.spec
            if spec.preprocessing.HasField("standardize"):
                columns, training_rows, _ = self._split()
                mean, scale = fit_standardize(columns.x, training_rows)
                self._preprocessing["standardize"] = {"mean": mean.ravel().tolist(), "scale": scale.ravel().tolist()}
        return self._preprocessing

    def classes_on_one_side(self) -> list[str]:
        """A sentence for each side of the split that has no row of some class: what is not trained, or not validated.

        None where rows have labels at positions: of a vocabulary some words are always rare.
        """
        if not self._one_label_per_row or not self._order.plan.validation_rows:
            return []
        target = self._dataset["target"]["classes"]
        columns, training_rows, validation_rows = self._split()
        sentences = []
        for side, rows in (("training", training_rows), ("validation", validation_rows)):
            counts = np.bincount(columns.y[rows], minlength=target["count"])
            missing = np.flatnonzero(counts == 0)
            if missing.size:
                names = ", ".join(str(target["names"][label] if target["names"] else label) for label in missing[:NAMED])
                more = f" and {missing.size - NAMED} more" if missing.size > NAMED else ""
                sentences.append(f"the {side} rows have none of class {names}{more}; take another seed or validation_fraction")
        return sentences

    def _split(self) -> tuple[Columns, NDArray[np.int64], NDArray[np.int64]]:
        columns, spec = open_columns(self._folder), self._order.spec
        return columns, *validation_split(spec.training.seed, columns.rows, spec.validation_fraction)


def _read_dataset(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(limits.DATASET_JSON_BYTES + 1)
    if len(content) > limits.DATASET_JSON_BYTES:
        raise InternalError(f"{path} is longer than {limits.DATASET_JSON_BYTES} bytes")
    read: dict[str, Any] = json.loads(content)
    return read
