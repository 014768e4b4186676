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
from worker.specs.convolution import (
    AveragePoolRecord,
    Conv1dRecord,
    Conv2dRecord,
    GlobalMaxRecord,
    GlobalMeanRecord,
    MaxPoolRecord,
)
from worker.specs.dense import DenseRecord, FlattenRecord
from worker.specs.initializers import InitializerRecord
from worker.specs.losses import MeanSquaredErrorRecord, PenaltyRecord, SoftmaxCrossEntropyRecord, loss_record, penalty_record
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
    "AveragePoolRecord",
    "ConstantSchedule",
    "Conv1dRecord",
    "Conv2dRecord",
    "CosineSchedule",
    "DenseRecord",
    "DropoutRecord",
    "EluRecord",
    "ExponentialSchedule",
    "FlattenRecord",
    "GeluRecord",
    "GlobalMaxRecord",
    "GlobalMeanRecord",
    "InitializerRecord",
    "LayerRecord",
    "LeakyReluRecord",
    "LossRecord",
    "MaxPoolRecord",
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
