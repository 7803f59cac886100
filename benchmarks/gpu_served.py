"""The real server on a GPU, where there is one: texts in, embeddings out, over gRPC."""

import functools
from collections.abc import Callable

import measuring
from gpu_report import Row
from gpu_timing import Budget

PART = "served"
DTYPE = "float16"
TEXTS = 2048
CLIENTS = ((1, 1), (32, 1), (4, 32))  # clients, texts a call
ROUNDS = 3


def obstacle() -> str:
    """Why nothing can be served here, in a few words; empty where it can."""
    try:
        from bertron_server.errors import InstallationError
        from bertron_server.installation import find_installation

        find_installation()
    except ImportError as error:
        return f"{error.name} is not installed"
    except InstallationError as error:
        return str(error)
    try:
        import bench_serving  # noqa: F401  and all that it needs: a model's real weights, clients
        import checkpoints  # noqa: F401
    except ImportError as error:
        return f"{error.name} is not installed"
    return ""


def measure_all(
    budget: Budget, add: Callable[[Row], None], note: Callable[[str], None], *, quick: bool
) -> None:
    """MiniLM-L6's real weights behind tritonserver; its vectors are held to transformers'.

    Raises:
        OutOfTimeError: The time did not suffice.
    """
    cause = obstacle()
    if cause:
        note(f"Serving was left out: {cause}.")
        return
    import bench_serving
    import engines
    import workloads
    from bertron_server.server import TritonServer
    from checkpoints import exported, minilm

    checkpoint = minilm()
    texts, _source = workloads.read_texts(TEXTS // 8 if quick else TEXTS)
    with budget.enforced(), TritonServer(exported(checkpoint, DTYPE), log_path=None) as server:
        token_ids = workloads.tokenize(checkpoint.directory / "tokenizer.json", texts)
        workload = workloads.real(token_ids, texts, by_length=False)
        expected = engines.transformers(checkpoint, "float32").vectors(workload)
        for clients, texts_a_call in CLIENTS:
            ask = functools.partial(
                bench_serving.concurrent, server.grpc_url, clients, texts_a_call, texts
            )
            shape = f"{clients} x {texts_a_call} text{'s' * (texts_a_call > 1)}"
            row = Row(PART, checkpoint.name, shape, DTYPE, "tritonserver, gRPC", is_ours=True)
            row.cosine = measuring.smallest_cosine(ask(), expected)  # and warms it up
            required = measuring.REQUIRED_COSINE[DTYPE]
            if row.cosine >= required:
                row.times_ms = [1e3 * measuring.seconds(ask) / len(texts) for _ in range(ROUNDS)]
            else:
                row.problem = f"cosine {row.cosine:.6f}, gate {required}"
            add(row)
