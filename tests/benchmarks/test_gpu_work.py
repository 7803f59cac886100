"""Operations and bytes against counts by hand."""

import gpu_work
import pytest
from gpu_work import Work


def test_rates_are_of_operations_and_bytes():
    work = Work(operations=6e9, bytes=2e9)
    assert work.intensity == 3
    assert work.tera_per_s(1.0) == pytest.approx(6.0)  # 6e9 in a thousandth of a second
    assert work.giga_bytes_per_s(1.0) == pytest.approx(2000.0)


def test_attention_counts_pairs_of_tokens_within_each_text():
    # Texts of 2 and 3 tokens, one head of 4. Q K^T: 4 + 9 dot products of 4 terms, a multiplication
    # and an addition each: 13 * 4 * 2. P V: as many. In: 5 tokens x 3 x 4; out: 5 x 4; 3 starts.
    work = gpu_work.attention([2, 3], heads=1, head_dim=4, element=2)
    assert work == Work(2 * 13 * 4 * 2, (5 * 3 * 4 + 5 * 4) * 2 + 3 * 4)


def test_attention_of_heads_is_that_many_times_one():
    one = gpu_work.attention([7], heads=1, head_dim=16, element=2)
    twelve = gpu_work.attention([7], heads=12, head_dim=16, element=2)
    assert twelve.operations == 12 * one.operations
    assert twelve.bytes - 8 == 12 * (one.bytes - 8)  # cu_seqlens is read once


def test_attention_of_bert_base_is_what_the_literature_counts():
    # 4 S^2 D H B, for B = 32, S = 512, H = 12, D = 64
    work = gpu_work.attention([512] * 32, heads=12, head_dim=64, element=2)
    assert work.operations == 4 * 512**2 * 64 * 12 * 32


def test_row_by_row_kernels():
    # x and residual in, one out: 3 x 10 x 8; bias, weight and norm_bias
    assert gpu_work.add_layer_norm(10, 8, 2, 2) == Work(720, (240 + 24) * 2)
    assert gpu_work.add_layer_norm(10, 8, 2, 4) == Work(720, 80 * 2 + (160 + 24) * 4)
    assert gpu_work.bias_gelu(10, 8, 2) == Work(480, (160 + 8) * 2)


def test_linear():
    # 3 tokens, 5 inputs, 7 outputs: 21 dot products of 5 terms
    assert gpu_work.linear(3, 5, 7, 2) == Work(21 * 5 * 2, (15 + 35 + 7 + 21) * 2)


def test_embedding_counts_the_rows_that_are_read_once():
    work = gpu_work.embedding_layer_norm(
        10, words=6, positions=4, token_types=2, hidden=8, element=2
    )
    # 6 + 4 + 2 rows of tables, weight and bias, 10 rows out; three ids of 4 bytes a token
    assert work.bytes == (6 + 4 + 2 + 2 + 10) * 8 * 2 + 3 * 4 * 10


def test_pool():
    # 10 tokens in fp16; 2 texts out in fp32, each value a mean, a square, its sum, a scale
    assert gpu_work.mean_pool(10, 2, 8, 2) == Work(80 + 64, 160 + 64 + 12)


def test_encoder_counts_products_and_attention_of_every_layer():
    # E = 4, I = 16, 5 tokens: qkv 4 x 12, output 4 x 4, up 4 x 16, down 16 x 4
    products = 5 * 2 * (4 * 12 + 4 * 4 + 4 * 16 + 16 * 4)
    attended = 2 * 2 * 4 * (2**2 + 3**2)
    assert gpu_work.encoder([2, 3], 6, 4, 16).operations == 6 * (products + attended)


def test_encoder_of_bert_base_is_24_e_squared_a_token_and_layer():
    # The usual count where I = 4 E: L (24 E^2 + 4 S E) a token
    operations = gpu_work.encoder([128] * 32, 12, 768, 3072).operations
    assert operations == 4096 * 12 * (24 * 768**2 + 4 * 128 * 768)
