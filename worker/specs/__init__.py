"""The plain records of an Architecture, its loss and its optimizer, made from the messages; no NumPy.

This package alone reads `WhichOneof`. Nothing below it knows protobuf.
"""

from worker.specs.activations import (
    EluRecord,
    GeluRecord,
    LeakyReluRecord,
    ReluRecord,
    SigmoidRecord,
    SiluRecord,
    SoftplusRecord,
    TanhRecord,
)
from worker.specs.architecture import Architecture, ParallelRecord, ResidualRecord, architecture
from worker.specs.dense import DenseRecord, FlattenRecord
from worker.specs.initializers import InitializerRecord
from worker.specs.losses import MeanSquaredErrorRecord, PenaltyRecord, SoftmaxCrossEntropyRecord, loss_record, penalty_record
from worker.specs.optimizers import ConstantSchedule, MomentumRecord, ScheduleRecord, SgdRecord, optimizer_record
from worker.specs.records import LayerRecord, LossRecord, OptimizerRecord

__all__ = [
    "Architecture",
    "ConstantSchedule",
    "DenseRecord",
    "EluRecord",
    "FlattenRecord",
    "GeluRecord",
    "InitializerRecord",
    "LayerRecord",
    "LeakyReluRecord",
    "LossRecord",
    "MeanSquaredErrorRecord",
    "MomentumRecord",
    "OptimizerRecord",
    "ParallelRecord",
    "PenaltyRecord",
    "ReluRecord",
    "ResidualRecord",
    "ScheduleRecord",
    "SgdRecord",
    "SigmoidRecord",
    "SiluRecord",
    "SoftmaxCrossEntropyRecord",
    "SoftplusRecord",
    "TanhRecord",
    "architecture",
    "loss_record",
    "optimizer_record",
    "penalty_record",
]
