"""The committed lengths, and the batches that are made of them."""

import gpu_lengths
import pytest


def test_what_is_written_is_read(tmp_path):
    lengths = list(range(3, 103))
    gpu_lengths.write(lengths, "made-up texts", tmp_path / "lengths.txt")
    assert gpu_lengths.read(tmp_path / "lengths.txt") == lengths


def test_the_committed_file_holds_real_texts():
    lengths = gpu_lengths.read()
    assert len(lengths) == gpu_lengths.COUNT
    assert min(lengths) >= 3  # [CLS], a token, [SEP]
    assert max(lengths) <= 256
    assert 20 <= sum(lengths) / len(lengths) <= 30


def test_fill():
    assert gpu_lengths.fill([4, 4]) == 1
    assert gpu_lengths.fill([1, 2, 3, 6]) == pytest.approx(12 / 24)


def test_batches_keep_the_order_and_leave_out_what_is_not_whole():
    assert gpu_lengths.batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4]]


def test_the_typical_batch_has_the_median_fill():
    lengths = [2, 8, 4, 8, 7, 8]  # fills 10/16, 12/16, 15/16
    assert gpu_lengths.typical_batch(lengths, 2) == [4, 8]


def test_the_typical_text_has_the_median_length():
    assert gpu_lengths.typical_batch([9, 2, 5], 1) == [5]


def test_first_tokens_are_exactly_so_many():
    assert gpu_lengths.first_tokens([3, 4], 9) == [3, 4, 2]
    assert gpu_lengths.first_tokens([3, 4], 7) == [3, 4]
    assert sum(gpu_lengths.first_tokens(gpu_lengths.read(), 16384)) == 16384
