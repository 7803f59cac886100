"""What does the Python client cost, and how is it used best?

Against the real server on this machine: one-text calls beside tritonclient's own clients, in
turns; texts/s by texts a call and protocol; and a long list of short texts in one call, beside the
best that raw clients get out of the server with the same texts. Vectors are compared each time.
"""

import argparse
import asyncio
import functools
import itertools
import random
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import measuring
import numpy as np
import tritonclient.grpc
import tritonclient.http
import workloads
from bertron_client import AsyncClient, Client
from bertron_server.server import TritonServer

REPOSITORY = measuring.ROOT / "model_repository"
OUTPUTS = ("EMBEDDING", "TOKEN_COUNT", "TRUNCATED")
ROUNDS = 3
TEXTS_A_CALL = (1, 8, 32, 64, 256, 512)
CALL_TEXTS = 512  # in each measurement of texts a call
RAW_THREADS = 4  # of raw clients, 64 texts a request: more gained nothing, 2 cores being busy
MOST_OVERHEAD_MS = 0.3
LEAST_SHARE = 0.9
MODEL = "text_embedding"


class Raw:
    """tritonclient as its documents show it: input set, outputs named, arrays taken."""

    def __init__(self, module: object, url: str) -> None:
        self._module = module
        self._client = module.InferenceServerClient(url.split("//")[1])

    def embed(self, texts: list[str]) -> np.ndarray:
        """All three outputs are read, as the SDK does; the vectors are returned."""
        tensor = self._module.InferInput("TEXT", [len(texts), 1], "BYTES")
        tensor.set_data_from_numpy(np.array(texts, dtype=object)[:, None])
        outputs = [self._module.InferRequestedOutput(name) for name in OUTPUTS]
        result = self._client.infer(MODEL, [tensor], outputs=outputs)
        vectors, *_ = [result.as_numpy(name) for name in OUTPUTS]
        return vectors

    def close(self) -> None:
        """Drop its connections."""
        self._client.close()


def check(found: np.ndarray, expected: np.ndarray, what: object) -> None:
    """Refuse to time what is wrong."""
    cosine = measuring.smallest_cosine(np.asarray(found), np.asarray(expected))
    if not cosine > measuring.REQUIRED_COSINE["float32"]:
        raise SystemExit(f"{what}: a vector has cosine {cosine:.6f} with what it should be")


def lines_of(
    table: str, row: object, columns: Iterable[str], values: Iterable[object]
) -> list[list[object]]:
    """One row of a table, a line for each of its values."""
    return [[table, row, column, value] for column, value in zip(columns, values, strict=True)]


def latency_table(server: TritonServer, calls: int) -> tuple[str, list[list[object]]]:
    """One-text calls of the SDK and of tritonclient, one after the other."""
    rows: list[list[object]] = []
    for name, module, url in (
        ("gRPC", tritonclient.grpc, server.grpc_url),
        ("HTTP", tritonclient.http, server.http_url),
    ):
        raw = Raw(module, url)
        with Client(url) as client:
            embeds = {"tritonclient": raw.embed, "SDK": client.embed}
            times: dict[str, list[float]] = {caller: [] for caller in embeds}
            texts = ["Where is my parcel?"]
            check(client.embed(texts), raw.embed(texts), name)
            for turn in range(calls + 20):
                for caller, embed in embeds.items():
                    took = measuring.seconds(functools.partial(embed, texts))
                    if turn >= 20:
                        times[caller].append(took * 1e3)
        raw.close()
        median = {caller: statistics.median(values) for caller, values in times.items()}
        added = median["SDK"] - median["tritonclient"]
        rows.append([name, median["tritonclient"], median["SDK"], added])
    shown = [[str(row[0]), *(f"{value:.3f}" for value in row[1:])] for row in rows]
    headings = ["one text, p50 ms", "tritonclient", "SDK", f"added [<= {MOST_OVERHEAD_MS}]"]
    columns = ("tritonclient_ms", "sdk_ms", "added_ms")
    return measuring.table(headings, shown), [
        line for row in rows for line in lines_of("one text", row[0], columns, row[1:])
    ]


def guide_table(server: TritonServer, texts: list[str]) -> tuple[str, list[list[object]]]:
    """texts/s by texts a call, one caller; medians of rounds in turns."""
    with Client(server.grpc_url) as grpc, Client(server.http_url) as http:
        expected = np.asarray(grpc.embed(texts))

        def embed_all(client: Client, size: int) -> np.ndarray:
            parts = [client.embed(texts[i : i + size]) for i in range(0, len(texts), size)]
            return np.concatenate([np.asarray(part) for part in parts])

        async def gathered() -> np.ndarray:
            async with AsyncClient(server.http_url) as client:
                slots = asyncio.Semaphore(64)

                async def one(text: str) -> np.ndarray:
                    async with slots:
                        return np.asarray(await client.embed([text]))

                return np.concatenate(await asyncio.gather(*map(one, texts)))

        ways: dict[tuple[str, str], Callable[[], np.ndarray]] = {
            (str(size), name): functools.partial(embed_all, client, size)
            for size in TEXTS_A_CALL
            for name, client in (("gRPC", grpc), ("HTTP", http))
        }
        ways["1, 64 tasks at a time", "HTTP, async"] = lambda: asyncio.run(gathered())
        for way, call in ways.items():
            check(call(), expected, way)
        timers = {way: functools.partial(measuring.seconds, call) for way, call in ways.items()}
        times = measuring.interleaved(timers, budget_s=30, least=ROUNDS)
    rows: list[list[object]] = []
    for (size, name), values in times.items():
        rates = [len(texts) / value for value in values]
        rows += lines_of("texts a call", f"{size}, {name}", ["texts_per_s"] * len(rates), rates)
    shown = [
        [size, name, measuring.spread([len(texts) / value for value in values])]
        for (size, name), values in times.items()
    ]
    return measuring.table(["texts a call", "", "texts/s (range)"], shown), rows


def many_short_texts(texts: list[str], count: int) -> list[str]:
    """``count`` texts of 1 to 8 words of the sample, no two the same."""
    words = [word for text in texts for word in text.split()]
    chance = random.Random(0)
    return [
        " ".join([*chance.choices(words, k=chance.randint(1, 8)), str(number)])
        for number in range(count)
    ]


def raw_rate(server: TritonServer, texts: list[str]) -> float:
    """texts/s of raw gRPC clients that send 64 texts of like length a request."""
    ordered = sorted(texts, key=len, reverse=True)
    requests = iter([ordered[i : i + 64] for i in range(0, len(ordered), 64)])
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        raw = Raw(tritonclient.grpc, server.grpc_url)
        try:
            while True:
                with lock:
                    request = next(requests, None)
                if request is None:
                    return
                raw.embed(request)
        except BaseException as error:
            failures.append(error)
        finally:
            raw.close()

    threads = [threading.Thread(target=work) for _ in range(RAW_THREADS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return len(texts) / (time.perf_counter() - started)


def peak_mb() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def long_table(server: TritonServer, sample: list[str], count: int) -> tuple[str, list[list]]:
    """One call with very many texts, and one stream, beside raw clients before and after."""
    texts = many_short_texts(sample, count)
    part = texts[: max(count // 5, 64)]
    rows: list[list[object]] = []
    raw_rates = [raw_rate(server, part)]
    known = texts[:: max(1, count // 50)]
    with Client(server.grpc_url, timeout_s=3600) as client:
        expected = np.asarray(client.embed(known))

        def stream() -> np.ndarray:
            rows = {e.index: e.vector for e in client.embed_iter(iter(texts)) if e.index in wanted}
            return np.array([rows[index] for index in sorted(rows)])

        wanted = set(range(0, count, max(1, count // 50)))
        calls: Iterable[tuple[str, Callable[[], np.ndarray]]] = (
            ("embed_iter", stream),
            ("embed", lambda: np.asarray(client.embed(texts))),
        )
        for name, call in calls:
            before = peak_mb()
            started = time.perf_counter()
            found = call()
            took = time.perf_counter() - started
            if name == "embed":
                found, held = found[:: max(1, count // 50)], found.nbytes / 2**20
            else:
                held = 0.0
            check(found, expected, name)
            raw_rates.append(raw_rate(server, part))
            share = count / took / statistics.mean(raw_rates[-2:])
            rows.append([name, count, count / took, share, peak_mb() - before, held])
    shown = [
        [name, str(n), f"{rate:.0f}", f"{share:.2f}", f"{grown:.0f}", f"{held:.0f}"]
        for name, n, rate, share, grown, held in rows
    ]
    headings = [
        *("one call", "texts", "texts/s", f"of raw clients' [>= {LEAST_SHARE}]"),
        *("peak memory grew, MB", "of it the result, MB"),
    ]
    columns = ("texts", "texts_per_s", "share_of_raw", "peak_grew_mb", "result_mb")
    lines = [line for name, *values in rows for line in lines_of("one call", name, columns, values)]
    raws = ", ".join(f"{rate:.0f}" for rate in raw_rates)
    return (
        measuring.table(headings, shown)
        + f"\n\nRaw clients, {RAW_THREADS} x 64 texts of like length, in between: {raws} texts/s.",
        lines,
    )


def main() -> None:
    """Check, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, default=REPOSITORY, help="what is served")
    parser.add_argument("--calls", type=int, default=500, help="one-text calls for the latency")
    parser.add_argument("--texts", type=int, default=100_000, help="in the one long call")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    args = parser.parse_args()

    busy = measuring.load_average()
    started = time.monotonic()
    sample, source = workloads.read_texts(640)
    guide = list(itertools.islice(itertools.cycle(sample), CALL_TEXTS))
    with TritonServer(args.repository, log_path=None) as server:
        latency, latency_rows = latency_table(server, args.calls)
        by_size, size_rows = guide_table(server, guide)
        long, long_rows = long_table(server, sample, args.texts)
    minutes = (time.monotonic() - started) / 60
    versions = (
        {"tritonclient": tritonclient.__version__} if hasattr(tritonclient, "__version__") else {}
    )
    body = [
        f"# The Python client\n\n{' '.join(__doc__.split())}\n",
        latency + "\n",
        f"One caller, {len(guide)} {source}:\n\n{by_size}\n",
        long + "\n",
        f"{measuring.setting(versions)}. Load average before: {busy:.2f}. "
        f"Took {minutes:.1f} min.\n",
    ]
    sys.stdout.write("\n".join(body))
    measuring.write_results(
        args.results,
        "client",
        "\n".join(body),
        ("table", "row", "column", "value"),
        [*latency_rows, *size_rows, *long_rows],
    )


if __name__ == "__main__":
    main()
