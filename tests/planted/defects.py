"""The defects that are planted, to see that the tests of faults find what they are there to find."""

from __future__ import annotations

from tests.planted.defect import Change, Defect

_FOLDER = "coordinator/checkpoint_folder.py"
_CUT = "row 10, `test_a_cut_anywhere_leaves_the_old_or_the_new_checkpoint`"

DEFECTS = {
    defect.name: defect
    for defect in (
        Defect(
            "tree_order_swapped",
            "All workers but the first take the vectors of subtrees from right to left, so that others are added first.",
            [
                Change(
                    "worker/collective/plan.py",
                    "        pieces = {subtree: vector[inner] for subtree, vector in vectors.items()}\n        sums = ",
                    "        left = sorted(vectors, reverse=chunk_first > 0)\n"
                    "        pieces = {there: vectors[s][inner] for there, s in zip(sorted(vectors), left)}\n        sums = ",
                )
            ],
            "row 1 with three workers",
            "same_weights",
        ),
        Defect(
            "snapshot_in_mid_update",
            "What a worker offers is from the midst of an update: half of its chunk of the optimizer's state is as before.",
            [
                Change(
                    "worker/collective/reduce.py",
                    "        self._rows[()] = rows\n",
                    "        self._rows[()] = rows\n"
                    "        self.before = [vector[len(vector) // 2 :].copy() for vector in self._memory.state]\n"
                    "        self.offered = False\n",
                ),
                Change(
                    "worker/collective/reduce.py",
                    "    def _plan(self, filled: int) -> StepPlan:\n",
                    "    def swap(self, offered):\n"
                    "        if getattr(self, 'offered', offered) != offered:\n"
                    "            self.offered = offered\n"
                    "            for vector, before in zip(self._memory.state, self.before):\n"
                    "                half = vector[len(vector) // 2 :]\n"
                    "                half[:], before[:] = before.copy(), half.copy()\n\n"
                    "    def _plan(self, filled: int) -> StepPlan:\n",
                ),
                Change(
                    "worker/shard_worker.py",
                    "        return self._prepared().snapshot(request.step)\n",
                    "        self._prepared().stretches._reduction.swap(True)\n"
                    "        return self._prepared().snapshot(request.step)\n",
                ),
                Change(
                    "worker/shard_worker.py",
                    "        assignment.hide()\n",
                    "        assignment.hide()\n        assignment.stretches._reduction.swap(False)\n",
                ),
            ],
            "row 1",
            "same_weights",
        ),
        Defect(
            "files_not_synced",
            "The files of a checkpoint are not synced before the folder gets its name.",
            [Change(_FOLDER, "            _sync(temporary / name)\n", "")],
            _CUT,
            "row 10: a checkpoint has its name and is not whole",
        ),
        Defect(
            "folder_not_synced",
            "The names of a checkpoint's files are not synced before the folder gets its own.",
            [Change(_FOLDER, "        _sync(temporary)\n", "")],
            _CUT,
            "row 10: a checkpoint has its name and is not whole",
        ),
        Defect(
            "name_not_synced",
            "The name of a checkpoint's folder is not synced before the checkpoint is said.",
            [Change(_FOLDER, "        _sync(target.parent)\n", "")],
            _CUT,
            "row 10: a checkpoint that was acknowledged is lost",
        ),
        Defect(
            "manifest_before_files",
            "The manifest is written, and synced, before the files that it names.",
            [
                Change(
                    _FOLDER,
                    "{**files, MANIFEST_FILE: made.to_json().encode()}",
                    "{MANIFEST_FILE: made.to_json().encode(), **files}",
                )
            ],
            "row 10, `test_where_there_is_a_manifest_there_is_all_that_it_names`",
            "row 10: a manifest speaks of what is not there",
        ),
        Defect(
            "run_number_unchecked",
            "An event of an earlier run counts like one of the run under way.",
            [Change("services/runs/apply.py", "not run.active or run.run_number != job.run_number or ", "")],
            "`test_an_event_counts_once_and_one_of_an_older_run_not_at_all`",
            "an older run has ended the job",
        ),
        Defect(
            "segments_reused",
            "A worker's part in a new group takes over its segment of an old one, where the size is the same.",
            [
                Change(
                    "worker/collective/shared_memory.py",
                    '        check_free(size, f"the segment of worker {rank}")\n',
                    "        if size in _kept:\n"
                    "            _kept[size].map[: _IDENTITY.size] = identity(group_number, rank)\n"
                    "            return _kept[size]\n"
                    '        check_free(size, f"the segment of worker {rank}")\n',
                ),
                Change(
                    "worker/collective/shared_memory.py",
                    "        segment.map[: _IDENTITY.size] = identity(group_number, rank)\n",
                    "        segment.map[: _IDENTITY.size] = identity(group_number, rank)\n        _kept[size] = segment\n",
                ),
                Change(
                    "worker/collective/shared_memory.py",
                    "        if self.fd >= 0:\n            os.close(self.fd)\n            self.fd = -1\n",
                    "        pass\n",
                ),
                Change("worker/collective/shared_memory.py", "REPORT_FLOATS = 64", "_kept = {}\nREPORT_FLOATS = 64"),
            ],
            "row 14, a survivor that is late in its second group",
            "nobody_else_blamed",
        ),
        Defect(
            "divided_per_shard",
            "Each vector is divided by the denominator before the sum, and not the sum once.",
            [
                Change(
                    "worker/collective/reduce.py",
                    "            for left, right, out in block.additions:\n                add(left, right, out=out)\n"
                    "            divide(block.total, self._denominator if block.first < learned else self._rows, "
                    "out=block.gradient)\n",
                    "            by, sums = self._denominator if block.first < learned else self._rows, []\n"
                    "            for left, right, out in block.additions:\n"
                    "                add(*(v if any(v is s for s in sums) else v / by for v in (left, right)), out=out)\n"
                    "                sums.append(out)\n"
                    "            divide(block.total, 1 if sums else by, out=block.gradient)\n",
                )
            ],
            "row 1",
            "same_weights",
        ),
        Defect(
            "dropout_by_rank",
            "The masks of dropout are drawn from streams of the worker's rank, and not of its shards.",
            [
                Change(
                    "worker/stretch.py",
                    "        streams = Streams(self._model.seed, step, self._first_shard)\n        return ",
                    "        streams = Streams(self._model.seed, step, self._rank)\n        return ",
                )
            ],
            "row 1",
            "same_weights",
        ),
        Defect(
            "norms_by_rank",
            "A worker adds up the sums of squares from its own blocks on, and not from the first tensor's.",
            [
                Change(
                    "worker/collective/norms.py",
                    "        blocks = [norms.range_of(*chunk) for chunk in layout.chunks]\n",
                    "        blocks = [norms.range_of(*chunk) for chunk in layout.chunks]\n"
                    "        norms.own = blocks[rank][0]\n",
                ),
                Change(
                    "worker/nn/norms.py",
                    "        return float(np.add.reduce(self._sums[number][row]))\n",
                    "        return float(np.add.reduce(np.roll(self._sums[number][row], -getattr(self, 'own', 0))))\n",
                ),
            ],
            "`test_norms_give_the_same_bits_on_any_number_of_workers_and_nodes`",
            "norms by the number of workers",
        ),
        Defect(
            "controller_not_restored",
            "A run that begins with a checkpoint does not take over what its controller remembered.",
            [
                Change(
                    "coordinator/standing.py",
                    "        self.controller = Controller.restored(self.controller.schedule, manifest)\n",
                    "",
                )
            ],
            "row 2",
            "same_state",
        ),
    )
}
