"""Positions numbered on the host are those that the model numbers on the device."""

import numpy as np
import pytest
import torch
from bertron_backend.packing import PackedRequest, split
from bertron_backend.position_ids import PositionNumbering
from bertron_torchscript.bert import Bert
from bertron_torchscript.checkpoint import read_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoints import ARCHITECTURES, make_checkpoint

TEXTS = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=30), min_size=1, max_size=9)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request, tmp_path_factory):
    directory = make_checkpoint(tmp_path_factory.mktemp(request.param), request.param)
    checkpoint = read_checkpoint(str(directory), pooling="mean", normalize=False)
    return Bert(checkpoint.config, checkpoint.pooling, 0)


# Ids of 0 to 4: the padding token, which RoBERTa numbers otherwise, is often among them.
@settings(deadline=None)
@given(TEXTS)
def test_equal_to_the_models_own(model, texts):
    lengths = np.array([len(text) for text in texts])
    ids = np.concatenate(texts).astype(np.int32)
    (batch,) = split(PackedRequest(ids, np.zeros_like(ids), lengths.tolist()), 1)
    found = PositionNumbering(model.position_offset, model.pad_token_id).of(batch)
    expected = model._position_ids(torch.from_numpy(ids), torch.from_numpy(batch.cu_seqlens))
    assert found.dtype == np.int32
    assert found.tolist() == expected.tolist()


def test_roberta_numbers_from_its_offset_and_skips_the_padding_token():
    ids = np.array([0, 7, 1, 8, 2, 0, 2], dtype=np.int32)  # <s> a <pad> b </s>, <s> </s>
    (batch,) = split(PackedRequest(ids, np.zeros_like(ids), [5, 2]), 1)
    assert PositionNumbering(2, 1).of(batch).tolist() == [2, 3, 1, 4, 5, 2, 3]
