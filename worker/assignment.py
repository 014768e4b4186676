"""What a worker has of one group: its part of the run, its segment and port from prepare, model and reduction from connect."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import final

from lockstep.contract.arithmetic import default_shards
from lockstep.contract.errors import InternalError
from lockstep.internal.v1.worker_pb2 import PrepareReply, PrepareRequest, ReceiveReply, SnapshotReply
from lockstep.v1.job_spec_pb2 import NonFinitePolicy
from worker.build import build_model, build_update
from worker.collective.barrier import Barrier
from worker.collective.handshake import Membership
from worker.collective.layout import ExchangeLayout, block_borders
from worker.collective.links import Links, NoLinks
from worker.collective.listener import Listener, link_peers
from worker.collective.peers import Deadlines, PeerError
from worker.collective.plan import NodeMemory
from worker.collective.reduce import Reduction
from worker.collective.shared_memory import F32, Segment, SegmentLayout
from worker.collective.tcp import TcpLinks
from worker.collective.tree import owned_shards
from worker.data.columns import open_columns
from worker.data.standardize import Standardization, fit_standardize
from worker.evaluation import Evaluator
from worker.failpoints import failpoint
from worker.gradient_check import JobGradientCheck
from worker.nn.shapes import parameter_layout
from worker.randomness import validation_split
from worker.rows import RowSource, TrainingRows
from worker.specs import architecture, optimizer_record
from worker.state_transfer import serve_state
from worker.stretch import Stretches
from worker.weights_file import read_parameters, read_state


@final
class Assignment:
    """A worker's part in a group. Each group has new ones; `release` gives back all that the part held.

    Raises UserError for a spec that cannot be built, DatasetUnreadable, OSError where memory is short.
    """

    def __init__(self, request: PrepareRequest, host: str) -> None:
        order = request.order
        self._spec, self._total_steps = order.spec, order.plan.total_steps
        self.rank, self.nodes = request.rank, tuple(request.node_ids)
        self._files, self._host = Path(request.files_folder), request.advertised_host or host
        self._group_number = request.group_number
        training = order.spec.training
        self._shards = order.plan.shards or training.shards or default_shards(training.batch_size)

        failpoint("dataset.when_opening")
        self._columns = open_columns(self._files / "datasets" / order.dataset_digest)
        model = architecture(order.spec.model, self._columns.input_shape)
        self._layout, self._least_rows = parameter_layout(model), model.least_shard_rows
        self._update = build_update(order.spec, self._layout)
        norms = self._update.norms
        self._norm_shapes = [(rows, norms.blocks) for rows in norms.rows] if norms else []
        tensors = [(entry.offset, entry.offset + entry.size) for entry in self._layout.entries]
        self._exchange = ExchangeLayout(block_borders(tensors, self._layout.size), self._shards, self.nodes)
        self._training_rows, self._validation_rows = validation_split(
            training.seed, self._columns.rows, order.spec.validation_fraction
        )
        standardization = None
        if order.spec.preprocessing.HasField("standardize"):
            standardization = Standardization(*fit_standardize(self._columns.x, self._training_rows))
        self._source = RowSource(self._columns, standardization)
        self._deadlines = Deadlines(request.step_deadline_floor_s, request.first_step_deadline_s)

        self._segment_layout = self._segment_layout_of(self.rank)
        self._segment = Segment.create(self._segment_layout.size, self._group_number, self.rank)
        self._member = Membership(request.group_key, order.run_number, self._group_number, self.rank)
        try:
            self._listener = Listener(
                host, self._member, lambda link: serve_state(link, self.rank, self._offered, self._wanted)
            )
        except BaseException:
            self._segment.close()
            raise
        self._barrier: Barrier | None = None
        self._links: Links = NoLinks()
        self._memory: NodeMemory | None = None
        self.stretches: Stretches | None = None
        self.evaluation: Evaluator | None = None
        self._gradient_check: JobGradientCheck | None = None
        self._offered_step = self._wanted_step = -1

    @property
    def step(self) -> int:
        """The last step that was applied or skipped."""
        return self.stretches.step if self.stretches is not None else 0

    @property
    def _leads(self) -> bool:
        return self._exchange.leader(self.nodes[self.rank]) == self.rank

    @property
    def chunk(self) -> tuple[int, int]:
        """The range of the flat vectors that this worker owns."""
        return self._exchange.chunks[self.rank]

    def endpoint(self, pid: int) -> PrepareReply:
        """Where this worker's memory and port are."""
        lo, hi = owned_shards(self.rank, len(self.nodes), self._shards)
        return PrepareReply(
            pid=pid,
            segment_fd=self._segment.fd,
            segment_bytes=self._segment.size,
            host=self._host,
            port=self._listener.port,
            first_shard=lo,
            end_shard=hi,
        )

    def connect(self, peers: Sequence[PrepareReply]) -> None:
        """Opens the segments of the node's workers and the links to other nodes. Raises PeerError."""
        node, nodes = self.nodes[self.rank], self.nodes
        members = self._exchange.members[node]
        layouts = {rank: self._segment_layout_of(rank) for rank in members}
        segments = {
            rank: self._segment if rank == self.rank else self._open(rank, peers[rank], layouts[rank]) for rank in members
        }
        leader = members[0]
        first, end = self.chunk
        self._memory = memory = NodeMemory(
            parameters=segments[leader].floats(layouts[leader].parameters, self._layout.size),
            gradients={rank: self._gradients(rank, segments[rank], layouts[rank]) for rank in members},
            reports={rank: segment.report for rank, segment in segments.items()},
            state=tuple(self._segment.floats(at, end - first) for at in self._segment_layout.state),
            norms=tuple(
                segments[leader].doubles(at, shape) for at, shape in zip(layouts[leader].norms, self._norm_shapes, strict=True)
            ),
        )
        self._barrier = Barrier(self.rank, nodes, segments, {rank: peers[rank].pid for rank in members})
        linked = self._exchange.linked(self.rank)
        if linked:
            addresses = {rank: (peers[rank].host, peers[rank].port) for rank in linked}
            self._links = TcpLinks(self.rank, nodes, link_peers(self._listener, self._member, linked, addresses, nodes))
        self._build(memory)

    def _build(self, memory: NodeMemory) -> None:
        training, owned = self._spec.training, owned_shards(self.rank, len(self.nodes), self._shards)
        model = build_model(
            self._spec, self._columns.input_shape, parameters=memory.parameters, gradients=memory.gradients[self.rank]
        )
        assert self._barrier is not None
        self._model = model
        self.stretches = Stretches(
            rank=self.rank,
            model=model,
            rows=TrainingRows(
                self._source,
                self._training_rows,
                seed=training.seed,
                batch_size=training.batch_size,
                shards=self._shards,
                owned=owned,
                least_rows=self._least_rows,
            ),
            reduction=Reduction(
                self._exchange,
                self.rank,
                memory,
                self._barrier,
                self._links,
                self._update,
                self._deadlines,
                model.finished_ranges,
            ),
            memory=memory,
            optimizer=optimizer_record(self._spec.optimizer),
            deadlines=self._deadlines,
            first_shard=owned[0],
            total_steps=self._total_steps,
            skips=self._spec.non_finite == NonFinitePolicy.SKIP_STEP,
        )
        self.evaluation = Evaluator(model, self._source, self._validation_rows, self.rank, len(self.nodes))

    def restore(self, step: int, checkpoint_folder: str) -> None:
        """Sets the node's parameters (its leader) and the own chunk of the optimizer's state: from a checkpoint or the seed."""
        assert self._memory is not None and self.stretches is not None
        self.hide()
        folder = self._files / checkpoint_folder
        if self._leads:
            if checkpoint_folder:
                read_parameters(folder, self._layout, self._memory.parameters)
            else:
                self._model.initialize()
        vectors = read_state(folder, self._layout, self._update.state_names) if checkpoint_folder else {}
        for name, own in zip(self._update.state_names, self._memory.state, strict=True):
            own[:] = vectors[name][slice(*self.chunk)] if vectors else 0
        self.stretches.step = step

    def receive(self, step: int) -> ReceiveReply:
        """Says where the coordinator is to put the state after `step`: the node's parameters (its leader), the own chunks."""
        self.hide()
        self._wanted_step = step
        first, end = self.chunk
        reply = ReceiveReply()
        if self._leads:
            reply.vectors.add(name="parameters", first=0, end=self._layout.size, segment_offset=self._segment_layout.parameters)
        for name, at in zip(self._update.state_names, self._segment_layout.state, strict=True):
            reply.vectors.add(name=name, first=first, end=end, segment_offset=at)
        return reply

    def restore_received(self, step: int) -> None:
        """The state after `step` is in its place. Raises InternalError when it was not to come."""
        if self.stretches is None or step != self._wanted_step:
            raise InternalError(
                f"the state after step {step} was put in place; that after step {self._wanted_step} was to come"
            )
        failpoint("snapshot.when_received", step)
        self.hide()
        self.stretches.step = step

    def gradient_check(self) -> JobGradientCheck:
        """The check of the model as it is at its first use. Raises InternalError in a group of several or after a step."""
        if self._gradient_check is None:
            if len(self.nodes) > 1 or self.step:
                raise InternalError(
                    f"a gradient check takes one worker at step 0; there are {len(self.nodes)} at step {self.step}"
                )
            self._gradient_check = JobGradientCheck(
                self._model, self._source, self._training_rows, self._spec.training.batch_size
            )
        return self._gradient_check

    def snapshot(self, step: int) -> SnapshotReply:
        """Offers the state after `step`: rank 0 the parameters, every owner its chunk of the optimizer's vectors."""
        self._offered_step = step
        first, end = self.chunk
        reply = SnapshotReply(step=step)
        failpoint("snapshot.when_offering_parameters", step)
        if self.rank == 0:
            reply.vectors.add(name="parameters", first=0, end=self._layout.size, segment_offset=self._segment_layout.parameters)
        failpoint("snapshot.when_offering_optimizer", step)
        for name, at in zip(self._update.state_names, self._segment_layout.state, strict=True):
            reply.vectors.add(name=name, first=first, end=end, segment_offset=at)
        return reply

    def hide(self) -> None:
        """The state is about to change by steps: it is not offered any more, and none is to come."""
        self._offered_step = self._wanted_step = -1

    def _offered(self, step: int, name: str, first: int, end: int) -> F32 | None:
        return self._range(name, first, end) if step == self._offered_step else None

    def _wanted(self, step: int, name: str, first: int, end: int) -> F32 | None:
        return self._range(name, first, end) if step == self._wanted_step else None

    def _range(self, name: str, first: int, end: int) -> F32 | None:
        memory = self._memory
        if memory is None:
            return None
        if name == "parameters":
            return memory.parameters[first:end] if first <= end <= self._layout.size else None
        if name in self._update.state_names and (first, end) == self.chunk:
            return memory.state[self._update.state_names.index(name)]
        return None

    def abandon(self, error: BaseException) -> None:
        """The group is over: tells the peers of it, and whom to look at."""
        missing = error.missing_ranks[0] if isinstance(error, PeerError) and error.missing_ranks else self.rank
        if self._barrier is not None:
            self._barrier.stop(missing)
        self._links.abort(missing, self.step)

    def release(self) -> None:
        """Closes port, links and descriptors, and lets go of all views, so that the memory goes back."""
        self._listener.close()
        self._links.close()
        if self._barrier is not None:
            self._barrier.close()
        self._segment.close()
        with suppress(AttributeError):
            del self._model
        self._memory = self.stretches = self.evaluation = self._gradient_check = self._barrier = None
        gc.collect()

    def _segment_layout_of(self, rank: int) -> SegmentLayout:
        first, end = self._exchange.chunks[rank]
        leads = self._exchange.leader(self.nodes[rank]) == rank
        subtrees = len(self._exchange.worker_subtrees(rank, self._shards))
        return SegmentLayout.of(
            self._layout.size if leads else 0,
            (subtrees, self._layout.size),
            (len(self._update.state_names), end - first),
            [rows * blocks for rows, blocks in self._norm_shapes] if leads else [],
        )

    def _gradients(self, rank: int, segment: Segment, layout: SegmentLayout) -> F32:
        subtrees = len(self._exchange.worker_subtrees(rank, self._shards))
        return segment.floats(layout.gradients, subtrees * self._layout.size).reshape(subtrees, self._layout.size)

    def _open(self, rank: int, peer: PrepareReply, layout: SegmentLayout) -> Segment:
        if peer.segment_bytes != layout.size:
            raise PeerError(f"worker {rank} has a segment of {peer.segment_bytes} bytes instead of {layout.size}", [rank], 0)
        return Segment.open(peer.pid, peer.segment_fd, layout.size, self._group_number, rank, self.nodes)
