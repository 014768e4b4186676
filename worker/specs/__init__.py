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
    SoftmaxRecord,
    SoftplusRecord,
    TanhRecord,
)
from worker.specs.architecture import Architecture, ParallelRecord, ResidualRecord, architecture
from worker.specs.clipping import ClippingRecord, clipping_record
from worker.specs.convolution import (
    AveragePoolRecord,
    Conv1dRecord,
    Conv2dRecord,
    GlobalMaxRecord,
    GlobalMeanRecord,
    MaxPoolRecord,
)
from worker.specs.dense import DenseRecord, FlattenRecord, ReshapeRecord
from worker.specs.initializers import InitializerRecord
from worker.specs.losses import (
    BinaryCrossEntropyRecord,
    HuberRecord,
    MeanAbsoluteErrorRecord,
    MeanSquaredErrorRecord,
    PenaltyRecord,
    SoftmaxCrossEntropyRecord,
    loss_record,
    penalty_record,
)
from worker.specs.normalization import BatchNormRecord, LayerNormRecord, RmsNormRecord
from worker.specs.optimizers import (
    AdagradRecord,
    AdamRecord,
    AdamWRecord,
    LambRecord,
    MomentumRecord,
    NesterovRecord,
    RmsPropRecord,
    SgdRecord,
    optimizer_record,
)
from worker.specs.records import LayerRecord, LossRecord, OptimizerRecord, ScheduleRecord
from worker.specs.recurrent import GruRecord, LstmRecord
from worker.specs.schedules import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    PolynomialSchedule,
    StepSchedule,
)
from worker.specs.sequence import AttentionRecord, EmbeddingRecord, PositionsRecord

__all__ = [
    "AdagradRecord",
    "AdamRecord",
    "AdamWRecord",
    "Architecture",
    "ClippingRecord",
    "BinaryCrossEntropyRecord",
    "AttentionRecord",
    "BatchNormRecord",
    "AveragePoolRecord",
    "ConstantSchedule",
    "Conv1dRecord",
    "Conv2dRecord",
    "CosineSchedule",
    "DenseRecord",
    "DropoutRecord",
    "EluRecord",
    "EmbeddingRecord",
    "ExponentialSchedule",
    "FlattenRecord",
    "GeluRecord",
    "HuberRecord",
    "GruRecord",
    "GlobalMaxRecord",
    "GlobalMeanRecord",
    "InitializerRecord",
    "LayerNormRecord",
    "LambRecord",
    "LayerRecord",
    "LeakyReluRecord",
    "LossRecord",
    "MeanAbsoluteErrorRecord",
    "LstmRecord",
    "MaxPoolRecord",
    "MeanSquaredErrorRecord",
    "MomentumRecord",
    "NesterovRecord",
    "OneCycleSchedule",
    "OptimizerRecord",
    "ParallelRecord",
    "PenaltyRecord",
    "PlateauSchedule",
    "PolynomialSchedule",
    "PositionsRecord",
    "ReluRecord",
    "ReshapeRecord",
    "ResidualRecord",
    "RmsNormRecord",
    "RmsPropRecord",
    "ScheduleRecord",
    "SgdRecord",
    "SigmoidRecord",
    "SiluRecord",
    "SoftmaxCrossEntropyRecord",
    "SoftmaxRecord",
    "SoftplusRecord",
    "StepSchedule",
    "TanhRecord",
    "architecture",
    "clipping_record",
    "loss_record",
    "optimizer_record",
    "penalty_record",
]
