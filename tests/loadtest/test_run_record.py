import dataclasses
import json

import pytest
from bertron_loadtest.phases import PhaseRecord
from bertron_loadtest.run_record import ProcessUse, Run, Snapshot, StepCounters
from bertron_loadtest.samples import Sample, Samples

RUN = Run(
    settings={"workload": "short", "users": 4, "texts_a_call": [1]},
    setting={"machine": "a small one"},
    phases=[PhaseRecord("warm-up", 4, 1.0, 2.0), PhaseRecord("steady", 4, 2.0, 5.0)],
    samples=Samples([Sample(1.5, 0.0, 0.25, "grpc", 1, 9, "right", "")]),
    sent=2,
    not_sent=1,
    snapshots=[
        Snapshot(
            1.0,
            {"bert": StepCounters(3, 1, 5, 2, 900, 100, 800, {1: 1, 4: 1})},
            {'bertron_batch_tokens_bucket{le="16"}': 2.0},
            {"bert": ProcessUse(1.5, 2**20)},
        ),
        Snapshot(2.0),
    ],
    problem="none that matters",
)


def test_a_run_is_kept_in_a_folder(tmp_path):
    RUN.save(tmp_path / "new" / "run")
    read = Run.load(tmp_path / "new" / "run")
    assert list(read.samples) == list(RUN.samples)
    same = {"samples": RUN.samples}
    assert dataclasses.replace(read, **same) == RUN


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(OSError, match=r"run\.json"):
        Run.load(tmp_path)
    RUN.save(tmp_path)
    document = json.loads((tmp_path / "run.json").read_text())
    del document["sent"]
    (tmp_path / "run.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="holds no run that this version can read: 'sent'"):
        Run.load(tmp_path)
