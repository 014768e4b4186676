"""The plain records of an Architecture, its loss and its optimizer, made from the messages; no NumPy.

This package alone reads `WhichOneof`. Nothing below it knows protobuf.
"""

from worker.specs.activations import (
    DropoutRecord,
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
from worker.specs.normalization import BatchNormRecord, LayerNormRecord, RmsNormRecord
from worker.specs.optimizers import (
    AdagradRecord,
    AdamRecord,
    AdamWRecord,
    MomentumRecord,
    NesterovRecord,
    RmsPropRecord,
    SgdRecord,
    optimizer_record,
)
from worker.specs.records import LayerRecord, LossRecord, OptimizerRecord
from worker.specs.schedules import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    OneCycleSchedule,
    PolynomialSchedule,
    ScheduleRecord,
    StepSchedule,
)

__all__ = [
    "AdagradRecord",
    "AdamRecord",
    "AdamWRecord",
    "Architecture",
    "BatchNormRecord",
    "ConstantSchedule",
    "CosineSchedule",
    "DenseRecord",
    "DropoutRecord",
    "EluRecord",
    "ExponentialSchedule",
    "FlattenRecord",
    "GeluRecord",
    "InitializerRecord",
    "LayerNormRecord",
    "LayerRecord",
    "LeakyReluRecord",
    "LossRecord",
    "MeanSquaredErrorRecord",
    "MomentumRecord",
    "NesterovRecord",
    "OneCycleSchedule",
    "OptimizerRecord",
    "ParallelRecord",
    "PenaltyRecord",
    "PolynomialSchedule",
    "ReluRecord",
    "ResidualRecord",
    "RmsNormRecord",
    "RmsPropRecord",
    "ScheduleRecord",
    "SgdRecord",
    "SigmoidRecord",
    "SiluRecord",
    "SoftmaxCrossEntropyRecord",
    "SoftplusRecord",
    "StepSchedule",
    "TanhRecord",
    "architecture",
    "loss_record",
    "optimizer_record",
    "penalty_record",
]
